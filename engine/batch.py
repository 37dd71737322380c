"""A microbatch as tensors: packed tokens, places, routing, and which rows predict which targets for whom."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.host_routing import HostRouting, RoutedAdapters
from ..kernels.routing import Routing, Segment, WantedTables
from ..kernels.upload import to_device
from ..planner.errors import JobError
from ..planner.jobs import Job, Sample
from ..planner.plan import Microbatch

Encoded = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Token ids and labels; labels unshifted (label i is token i), IGNORED where not learned."""
IGNORED = -100
"""Label of a token that is not learned, as in transformers."""


class TokenSource(Protocol):
    """Where the tokens of a plan's samples come from."""

    def tokens(self, sample: Sample) -> Encoded:
        """Those of one sample."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetShare:
    """The target rows of one adapter in a microbatch."""

    adapter: int
    global_batch: int
    num_targets: int
    divisor: int
    """Target tokens of the whole global batch."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedRows:
    """Where the samples of a microbatch lie among its T rows, one after another."""

    sample_lengths: tuple[int, ...]
    """They add up to T."""
    position_ids: Tensor
    """int64 `[1, T]`, from 0 in each sample."""
    cumulative_lengths: Tensor
    """int32 `[samples + 1]`: first row of each sample, and T."""

    @classmethod
    def of(cls, sample_lengths: Sequence[int], *, device: torch.device | str = "cpu") -> "PackedRows":
        """Rows of samples of these lengths."""
        lengths = tuple(int(length) for length in sample_lengths)
        borders, positions = _places(lengths)
        position_ids, cumulative_lengths = to_device((positions[None], borders.astype(np.int32)), device)
        return cls(sample_lengths=lengths, position_ids=position_ids, cumulative_lengths=cumulative_lengths)

    @property
    def longest(self) -> int:
        return max(self.sample_lengths)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedBatch:
    """One microbatch on a device."""

    token_ids: Tensor
    """int64 `[1, T]`."""
    rows: PackedRows
    routing: Routing
    target_rows: Tensor
    """int64 `[targets]`: rows whose next token is learned."""
    target_ids: Tensor
    """int64 `[targets]`: that next token."""
    shares: tuple[TargetShare, ...]
    """Which of the targets, in order, belong to which adapter."""

    def num_rows(self) -> int:
        """T."""
        return self.token_ids.shape[1]


class Packer:
    """Makes PackedBatches of a plan's microbatches."""

    def __init__(self, jobs: Sequence[Job], tokens: TokenSource, *, device: torch.device | str = "cpu") -> None:
        self._jobs = tuple(jobs)
        self._tokens = tokens
        self._device = device
        # What the layers want of one microbatch they want of the next: all but the first bring it along.
        self._wanted = WantedTables()
        self._adapters = RoutedAdapters.of(
            scaling=[job.lora.scaling() for job in self._jobs],
            dropout=[job.lora.lora_dropout for job in self._jobs],
            seeds=[job.seed for job in self._jobs],
        )
        self._offsets = {
            (adapter, index): offset
            for adapter, job in enumerate(self._jobs)
            for index, offset in _token_offsets(job).items()
        }
        self._divisors = [[job.target_tokens(batch) for batch in range(len(job.global_batches))] for job in self._jobs]

    def pack(self, microbatch: Microbatch) -> PackedBatch:
        """On the packer's device by one copy that nobody waits for.

        Raises JobError where tokens do not fit the plan's lengths.
        """
        samples = microbatch.samples
        lengths = tuple(sample.num_tokens for sample in samples)
        borders, positions = _places(lengths)
        offsets = np.array([self._offsets[sample.adapter, sample.index] for sample in samples], np.int32)
        routing = self._routing(microbatch, positions.astype(np.int32) + offsets.repeat(lengths))
        ids, labels = self._encoded(samples)
        targets = self._targets(samples, labels, borders)
        token_ids, position_ids, cumulative_lengths, target_rows, target_ids, *rest = to_device(
            (ids[None], positions[None], borders.astype(np.int32), targets - 1, labels[targets], *routing.arrays()),
            self._device,
        )
        return PackedBatch(
            token_ids=token_ids,
            rows=PackedRows(sample_lengths=lengths, position_ids=position_ids, cumulative_lengths=cumulative_lengths),
            routing=Routing.of(routing, rest),
            target_rows=target_rows,
            target_ids=target_ids,
            shares=tuple(self._shares(microbatch)),
        )

    def _encoded(self, samples: Sequence[Sample]) -> Encoded:
        """Those of all samples, one after another."""
        rows = [self._tokens.tokens(sample) for sample in samples]
        for sample, (ids, _) in zip(samples, rows, strict=True):
            if len(ids) != sample.num_tokens:
                raise self._misfit(sample, f"{len(ids)} tokens", sample.num_tokens)
        return np.concatenate([ids for ids, _ in rows]), np.concatenate([labels for _, labels in rows])

    def _targets(
        self, samples: Sequence[Sample], labels: NDArray[np.int64], borders: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """int64 `[targets]`: rows whose token is learned, which the row before predicts; a sample's first has none."""
        learned = labels != IGNORED
        learned[borders[:-1]] = False
        targets = np.flatnonzero(learned)
        places = targets.searchsorted(borders).tolist()
        for sample, first, end in zip(samples, places, places[1:], strict=False):
            if end - first != sample.num_target_tokens:
                raise self._misfit(sample, f"{end - first} target tokens", sample.num_target_tokens)
        return targets

    def _misfit(self, sample: Sample, given: str, planned: int) -> JobError:
        return JobError(
            f"adapter '{self._jobs[sample.adapter].name}', sample {sample.index}: the data gives {given} "
            f"where the plan says {planned}; make the plan anew"
        )

    def _routing(self, microbatch: Microbatch, token_index: NDArray[np.int32]) -> HostRouting:
        current = dict(microbatch.global_batches())
        segments, row = [], 0
        for adapter, num_rows in microbatch.adapter_tokens():
            segments.append(Segment(first_row=row, num_rows=num_rows, adapter=adapter))
            row += num_rows
        return HostRouting.of(
            self._adapters,
            num_rows=row,
            segments=segments,
            global_batches=[current.get(adapter, 0) for adapter in range(len(self._jobs))],
            token_index=token_index,
            wanted=self._wanted,
        )

    def _shares(self, microbatch: Microbatch) -> Iterator[TargetShare]:
        for adapter, global_batch in microbatch.global_batches():
            yield TargetShare(
                adapter=adapter,
                global_batch=global_batch,
                num_targets=sum(sample.num_target_tokens for sample in microbatch.samples if sample.adapter == adapter),
                divisor=self._divisors[adapter][global_batch],
            )


def _places(lengths: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of samples one after another: their borders `[samples + 1]`, from 0, and each row's place in its own `[rows]`."""
    borders = np.cumsum((0, *lengths))
    return borders, np.arange(borders[-1]) - borders[:-1].repeat(lengths)


def _token_offsets(job: Job) -> Mapping[int, int]:
    # Tokens of its global batch that come before each sample, in data order: part of dropout's key.
    offsets = {}
    for batch in job.global_batches:
        offset = 0
        for sample in sorted(batch, key=lambda sample: sample.index):
            offsets[sample.index] = offset
            offset += sample.num_tokens
    return offsets
