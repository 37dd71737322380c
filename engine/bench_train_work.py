"""Samples of a workload: whole data sets for the time to finish, and a cut of them that a measurement can run."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..planner.jobs import Job, LoraSettings, OptimizerSettings, job_from_lengths
from ..traces.workloads import length_table, read_lengths, sample_lengths
from .bench_train_spec import LORA_RANK, MAX_TOKENS, TARGET_SHARE, WORKLOADS, Point, Question


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterData:
    """What one adapter learns in one epoch."""

    dataset: str
    lengths: tuple[int, ...]
    """Of every sample, cut at MAX_TOKENS or at what a microbatch holds."""

    def num_tokens(self) -> int:
        return sum(self.lengths)


def adapter_data(point: Point, question: Question) -> tuple[AdapterData, ...]:
    """The data of every adapter. Where adapters share a data set, each starts at another place of it."""
    names = WORKLOADS[point.workload]
    datasets = [names[index % len(names)] for index in range(point.num_adapters)]
    limit = min(MAX_TOKENS, point.microbatch_tokens)
    known = {name: _lengths(name, question.lengths_folder, limit=limit) for name in set(datasets)}
    made = []
    for index, name in enumerate(datasets):
        start = len(known[name]) * index // point.num_adapters
        made.append(AdapterData(dataset=name, lengths=known[name][start:] + known[name][:start]))
    return tuple(made)


def _lengths(dataset: str, folder: str | None, *, limit: int) -> tuple[int, ...]:
    if folder is None:
        lengths = sample_lengths(dataset, num_samples=length_table(dataset).num_samples, seed=0)
    else:
        lengths = read_lengths(Path(folder) / f"{dataset}.csv")
    # A sample of one token predicts nothing.
    return tuple(max(2, min(length, limit)) for length in lengths)


def bounded_jobs(
    data: Sequence[AdapterData], point: Point, question: Question, *, num_microbatches: float, full: float
) -> tuple[Job, ...]:
    """Jobs for so many microbatches or more: of each adapter the same share of its data, at least one global batch.

    Their tokens fill the share `full` of a whole number of microbatches: a plan of few would pay for a last one that is
    almost empty as no long plan does.

    Every token is learned, but the first of each sample; `ours-targets` learns the last quarter.
    """
    off = question.system == "ours-adapters-off"
    lora = LoraSettings(
        r=1 if off else LORA_RANK,
        lora_alpha=2.0 * LORA_RANK,
        lora_dropout=point.dropout,
        # PEFT's rule: a name that ends so. One small matrix at the bottom keeps the gradient going down all layers.
        target_modules=("layers.0.self_attn.q_proj",) if off else ("all-linear",),
    )
    return tuple(
        job_from_lengths(
            adapter=adapter,
            name=f"{adapter}-{one.dataset}",
            lengths=lengths,
            target_lengths=[_num_targets(length, question.system) for length in lengths],
            global_batch_size=point.global_batch_size,
            lora=lora,
            optimizer=OptimizerSettings(lr_scheduler="constant"),
            seed=adapter,
        )
        for adapter, (one, lengths) in enumerate(
            zip(data, _shares(data, point, num_microbatches=num_microbatches, full=full), strict=True)
        )
    )


def _shares(data: Sequence[AdapterData], point: Point, *, num_microbatches: float, full: float) -> list[list[int]]:
    wanted = num_microbatches * point.microbatch_tokens / sum(one.num_tokens() for one in data)
    least = max(point.global_batch_size / len(one.lengths) for one in data)
    share = min(1.0, max(wanted, least))
    lengths = [list(one.lengths[: math.ceil(share * len(one.lengths))]) for one in data]
    total = sum(map(sum, lengths))
    surplus = total - full * (total // point.microbatch_tokens) * point.microbatch_tokens
    for own in sorted(lengths, key=len, reverse=True):
        while surplus > 0 and len(own) > point.global_batch_size:
            surplus -= own.pop()
    return lengths


def _num_targets(length: int, system: str) -> int:
    return max(1, round(TARGET_SHARE * length)) if system == "ours-targets" else length - 1


def packs(lengths: Sequence[int], *, capacity: int) -> Iterator[tuple[int, ...]]:
    """Whole samples in order, first fit into packs of at most `capacity` tokens, eight of them open at a time."""
    open_packs: list[list[int]] = []
    for length in lengths:
        place = next((pack for pack in open_packs if sum(pack) + length <= capacity), None)
        if place is None:
            if len(open_packs) == 8:
                open_packs.sort(key=sum)
                yield tuple(open_packs.pop())
            place = []
            open_packs.append(place)
        place.append(length)
    yield from map(tuple, open_packs)
