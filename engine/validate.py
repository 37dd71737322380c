"""Loss on what `val_split` kept out of training: forward-only actions through the same stages, before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from ..planner.jobs import Job, Sample
from ..planner.plan import Microbatch, Plan, microbatch
from ..planner.program import Action, ActionColumns, ActionKind, Program
from .batch import IGNORED, Encoded
from .execute import Executor
from .itinerary import itinerary
from .packer import Packer
from .recorder import Recorder
from .stage import Stage
from .transport import Transport


class ValidationSource(Protocol):
    """Where validation samples come from."""

    def validation(self, adapter: int) -> Sequence[Encoded]:
        """Token ids and labels of each sample of an adapter; empty where nothing was kept out."""
        ...


@dataclass(frozen=True, slots=True)
class _ValidationTokens:
    samples: Mapping[int, Sequence[Encoded]]

    def tokens(self, sample: Sample) -> Encoded:
        return self.samples[sample.adapter][sample.index]


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """The validation samples of all adapters, packed."""

    plan: Plan
    tokens: _ValidationTokens

    @classmethod
    def of(cls, plan: Plan, source: ValidationSource) -> "Validation | None":
        """Packs in order, as many tokens to a microbatch as training has; None where no adapter kept any out."""
        samples = {adapter: source.validation(adapter) for adapter in range(len(plan.jobs))}
        jobs = tuple(_validation_job(adapter, job, samples[adapter]) for adapter, job in enumerate(plan.jobs))
        microbatches = _packed(jobs, capacity_tokens=plan.microbatch_tokens)
        if not microbatches:
            return None
        own = replace(plan, jobs=jobs, microbatches=microbatches, num_replicas=1, adapter_groups=(), solver=())
        return cls(plan=own, tokens=_ValidationTokens(samples))

    def packer(self, device: torch.device) -> Packer:
        """Makes batches of the samples, without dropout."""
        return Packer(self.plan.jobs, self.tokens, device=device)

    def held_out(self) -> tuple[tuple[Microbatch, ...], ...]:
        """By adapter, its samples in microbatches of its own."""
        return tuple(_packed((job,), capacity_tokens=self.plan.microbatch_tokens) for job in self.plan.jobs)

    def losses(self, stage: Stage, transport: Transport) -> dict[str, float]:
        """Mean loss per target token by adapter, on the last stage; every stage of one replica calls it together."""
        plan = self.plan
        columns = ActionColumns.of(
            Action(kind=ActionKind.EVALUATE, microbatch=place) for place in range(len(plan.microbatches))
        )
        program = Program(schedule="forward-only", num_stages=plan.num_stages, workers=(columns,) * plan.num_stages)
        executor = Executor(
            stage,
            plan,
            self.packer(stage.device),
            transport,
            recorder=Recorder(stage=stage.layout.stage, device=stage.device),
        )
        executor.run(itinerary(program, plan, stage=stage.layout.stage))
        return {plan.jobs[adapter].name: loss.item() for (adapter, _), loss in executor.sums.losses.items()}


def _validation_job(adapter: int, job: Job, samples: Sequence[Encoded]) -> Job:
    batch = tuple(
        Sample(
            adapter=adapter,
            global_batch=0,
            index=index,
            num_tokens=len(ids),
            num_target_tokens=int(np.count_nonzero(labels[1:] != IGNORED)),
        )
        for index, (ids, labels) in enumerate(samples)
    )
    return replace(job, global_batches=(batch,) if batch else (), lora=replace(job.lora, lora_dropout=0.0))


def _packed(jobs: Sequence[Job], *, capacity_tokens: int) -> tuple[Microbatch, ...]:
    found: list[list[Sample]] = []
    room = 0
    for job in jobs:
        for sample in (sample for batch in job.global_batches for sample in batch):
            if sample.num_tokens > room:
                found.append([])
                room = capacity_tokens
            found[-1].append(sample)
            room -= sample.num_tokens
    return tuple(microbatch(samples) for samples in found)
