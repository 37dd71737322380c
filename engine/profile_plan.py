"""Microbatches to measure: of all sizes up to the capacity, of one adapter and of all."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..planner.jobs import Job, LoraSettings, Sample, job_from_lengths
from ..planner.make_plan import make_plan
from ..planner.plan import Microbatch, Plan, microbatch
from ..planner.program import Action, ActionColumns, ActionKind, Program

_SHARES = (0.25, 0.5, 0.75, 1.0)
"""Parts of a plan's microbatch that are measured, so that small and large ones are foretold."""
_NUM_MICROBATCHES = 12
"""Microbatches of a plan that are measured, evenly spread over it."""
_BATCH_MICROBATCHES = 2
"""Microbatches of an adapter to an optimizer step, about as in a plan."""


def default_jobs(*, sequence_len: int, seed: int = 0) -> tuple[Job, ...]:
    """Two adapters as users make them, r = 16 on all linears, with and without dropout; lengths spread log-evenly."""
    generator = np.random.default_rng(seed)
    lengths = np.exp(generator.uniform(np.log(16), np.log(sequence_len), (2, 128))).astype(int).tolist()
    return tuple(
        job_from_lengths(
            adapter=adapter,
            name=f"default-{adapter}",
            lengths=lengths[adapter],
            target_lengths=[-(-length // 2) for length in lengths[adapter]],
            global_batch_size=16,
            lora=LoraSettings(lora_dropout=dropout),
        )
        for adapter, dropout in enumerate((0.0, 0.1))
    )


def measuring_plan(jobs: Sequence[Job], *, capacity_tokens: int, num_stages: int, seed: int = 0) -> Plan:
    """Microbatches as a plan of these jobs mixes them, whole and in parts, in random order."""
    planned = make_plan(jobs, num_stages=num_stages, microbatch_tokens=capacity_tokens, strategy="greedy")
    generator = np.random.default_rng(seed)
    places = np.linspace(0, len(planned.microbatches) - 1, min(_NUM_MICROBATCHES, len(planned.microbatches)))
    drawn: list[list[Sample]] = []
    for place in places.astype(int).tolist():
        samples = planned.microbatches[place].samples
        for share in _SHARES:
            order = generator.permutation(len(samples))
            drawn.append([samples[index] for index in order[: max(1, round(share * len(samples)))]])
    shuffled = [drawn[index] for index in generator.permutation(len(drawn))]
    return numbered_plan(jobs, shuffled, num_stages=num_stages, capacity_tokens=capacity_tokens)


def measuring_program(plan: Plan, *, with_steps: bool = True) -> Program:
    """Each microbatch forward and at once backward, then the steps it completes; the same on every stage."""
    last = {batch: place for place, held in enumerate(plan.microbatches) for batch in held.global_batches()}
    actions: list[Action] = []
    for place, held in enumerate(plan.microbatches):
        actions.append(Action(kind=ActionKind.FORWARD, microbatch=place))
        actions.append(Action(kind=ActionKind.BACKWARD, microbatch=place))
        actions += [
            Action(kind=ActionKind.STEP, adapter=adapter, global_batch=global_batch)
            for adapter, global_batch in held.global_batches()
            if with_steps and last[adapter, global_batch] == place
        ]
    columns = ActionColumns.of(actions)
    return Program(schedule="measuring", num_stages=plan.num_stages, workers=(columns,) * plan.num_stages)


def numbered_plan(
    jobs: Sequence[Job],
    drawn: list[list[Sample]],
    *,
    num_stages: int,
    capacity_tokens: int,
    batch_microbatches: int = _BATCH_MICROBATCHES,
) -> Plan:
    """These samples, a microbatch a list, as a plan of its own.

    Samples are numbered anew, and an adapter's batch ends with every `batch_microbatches`-th that holds it, and with
    the last.
    """
    counts = [0] * len(jobs)
    held = [0] * len(jobs)
    batches: list[list[list[Sample]]] = [[] for _ in jobs]
    microbatches: list[Microbatch] = []
    for samples in drawn:
        renamed = []
        for sample in samples:
            adapter = sample.adapter
            batch = held[adapter] // batch_microbatches
            renamed.append(replace(sample, global_batch=batch, index=counts[adapter]))
            counts[adapter] += 1
            if batch == len(batches[adapter]):
                batches[adapter].append([])
            batches[adapter][batch].append(renamed[-1])
        for adapter in {sample.adapter for sample in samples}:
            held[adapter] += 1
        microbatches.append(microbatch(renamed))
    return Plan(
        jobs=tuple(replace(job, global_batches=tuple(map(tuple, own))) for job, own in zip(jobs, batches, strict=True)),
        num_stages=num_stages,
        microbatch_tokens=capacity_tokens,
        microbatches=tuple(microbatches),
    )
