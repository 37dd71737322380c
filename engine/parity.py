"""Does sharing change anything? Trains a user's adapters together and each alone, and says how far they end apart."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..planner.build_program import build_program
from ..planner.errors import JobError
from ..planner.inputs.loaded_jobs import LoadedJobs
from ..planner.jobs import Job, Sample
from ..planner.make_plan import make_plan
from .batch import Encoded, TokenSource
from .metrics import StepRecord
from .model import read_config, whole_linears
from .solo import train_alone
from .stage import make_stage
from .targets import short_targets
from .threads import run_in_threads
from .weight_source import FROM_FOLDER, WeightSource

LIMITS = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 5e-2}
"""Largest difference that counts as equal, by dtype: of any weight, which rounding moves, amplified by AdamW at tiny
gradients; in bfloat16 of any step's loss, since there AdamW turns rounding into whole steps of single weights."""
Weights = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityRow:
    """One adapter, trained together with the others and alone."""

    adapter: str
    against: str
    """peft: alone in transformers and peft, without dropout on both sides; engine: alone in our engine, with it."""
    steps: int
    max_weight_difference: float
    max_loss_difference: float
    """Over the steps."""
    mean_loss_difference: float
    max_weight_change: float
    """How far training moved any weight: what the difference is to be measured by."""
    limit: float
    judged_by: Literal["weights", "losses"] = "weights"
    """What the limit is for."""

    def is_equal(self) -> bool:
        found = self.max_weight_difference if self.judged_by == "weights" else self.max_loss_difference
        return found <= self.limit


@dataclass(frozen=True, slots=True)
class _Run:
    # Of one adapter.
    start: Weights
    end: Weights
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    # Where and on what both sides train.
    folder: Path
    source: WeightSource
    dtype: torch.dtype
    device: torch.device


def check_parity(
    loaded: LoadedJobs,
    folder: Path,
    *,
    num_steps: int,
    source: WeightSource = FROM_FOLDER,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: Callable[[str, float], None] | None = None,
) -> tuple[ParityRow, ...]:
    """Train the first `num_steps` steps of every adapter both ways, in this process, with the job's stages as threads.

    Against peft with dropout off on both sides (its masks cannot be had elsewhere); where an adapter has dropout, also
    alone in our engine with dropout on. `folder` holds the base model; where it is held in 4 bits, peft trains on what
    those stand for. Raises JobError where its weights are random, or in 4 bits on disk.
    """
    _check_weights(folder, source)
    jobs = tuple(replace(job, global_batches=job.global_batches[:num_steps]) for job in loaded.jobs)
    dry = tuple(replace(job, lora=replace(job.lora, lora_dropout=0.0)) for job in jobs)
    wet = [index for index, job in enumerate(jobs) if job.lora.lora_dropout > 0]
    linears = whole_linears(folder)
    say = _counted(progress, total=1 + len(jobs) + (1 + len(wet) if wet else 0))
    say("all together, without dropout")
    place = _Place(folder=folder, source=source, dtype=dtype, device=torch.device(device))
    together = _train(loaded, dry, loaded, place)
    rows = []
    for index, job in enumerate(dry):
        say(f"{job.name} alone in peft")
        targets = short_targets(linears, job.lora.target_modules)
        solo = train_alone(
            folder,
            job,
            loaded,
            together[index].start,
            target_modules=targets,
            nf4=source.nf4,
            dtype=dtype,
            device=place.device,
        )
        alone = _Run(together[index].start, solo.weights, tuple(solo.losses))
        rows.append(_row(job, "peft", together[index], alone, dtype=dtype))
    if wet:
        say("all together, with dropout")
        together = _train(loaded, jobs, loaded, place)
        for index in wet:
            say(f"{jobs[index].name} alone in our engine")
            (alone,) = _train(loaded, (_alone(jobs[index]),), _Renumbered(loaded, index), place)
            rows.append(_row(jobs[index], "engine", together[index], alone, dtype=dtype))
    return tuple(rows)


def _check_weights(folder: Path, source: WeightSource) -> None:
    if source.random_seed is not None:
        raise JobError("random_weights: both sides must read the same weights; give a base_model that has some")
    if getattr(read_config(folder), "quantization_config", None):
        raise JobError(f"base_model '{folder}' is stored in 4 bits; give the unquantized model, with load_in_4bit")


def _train(loaded: LoadedJobs, jobs: Sequence[Job], tokens: TokenSource, place: _Place) -> list[_Run]:
    settings = loaded.settings
    plan = make_plan(
        jobs, num_stages=settings.num_stages, microbatch_tokens=settings.microbatch_tokens, strategy="greedy"
    )
    stages = [
        make_stage(
            place.folder,
            jobs,
            stage=stage,
            num_stages=plan.num_stages,
            weights=place.source,
            dtype=place.dtype,
            device=place.device,
        )
        for stage in range(plan.num_stages)
    ]

    def weights() -> list[dict[str, Tensor]]:
        return [
            {
                name: parameter.detach().cpu().clone()
                for stage in stages
                for name, parameter in stage.adapters[index].parameters.items()
            }
            for index in range(len(jobs))
        ]

    start = weights()
    # The threads share one interpreter: hours may pass between two messages of a large model.
    run = run_in_threads(stages, plan, build_program(plan), tokens, timeout_s=86_400.0)
    return [
        _Run(before, after, _losses(run.records, job.name))
        for before, after, job in zip(start, weights(), jobs, strict=True)
    ]


def _losses(records: Sequence[StepRecord], adapter: str) -> tuple[float, ...]:
    return tuple(record.loss for record in records if record.adapter == adapter)


def _row(job: Job, against: str, together: _Run, alone: _Run, *, dtype: torch.dtype) -> ParityRow:
    def apart(left: Weights, right: Weights) -> float:
        return max((left[name] - right[name]).abs().max().item() for name in left)

    losses = [abs(a - b) for a, b in zip(together.losses, alone.losses, strict=True)]
    return ParityRow(
        adapter=job.name,
        against=against,
        steps=len(job.global_batches),
        max_weight_difference=apart(together.end, alone.end),
        max_loss_difference=max(losses),
        mean_loss_difference=sum(losses) / len(losses),
        max_weight_change=apart(together.start, together.end),
        limit=LIMITS[dtype],
        judged_by="losses" if dtype is torch.bfloat16 else "weights",
    )


def _alone(job: Job) -> Job:
    batches = tuple(tuple(replace(sample, adapter=0) for sample in batch) for batch in job.global_batches)
    return replace(job, global_batches=batches)


@dataclass(frozen=True, slots=True)
class _Renumbered:
    # The tokens of one adapter of many, which is number 0 when it is alone.
    tokens_of_all: TokenSource
    adapter: int

    def tokens(self, sample: Sample) -> Encoded:
        return self.tokens_of_all.tokens(replace(sample, adapter=self.adapter))


def _counted(progress: Callable[[str, float], None] | None, *, total: int) -> Callable[[str], None]:
    done = 0

    def say(label: str) -> None:
        nonlocal done
        if progress is not None:
            progress(f"parity: {label}", done / total)
        done += 1

    return say
