"""Evaluations inside a training Program: forward-only actions of an adapter's validation samples between its steps.

They stand right behind the adapter's Step on every stage, before the forward that the Step stands before. So all stages
run them with the same weights, in the order in which activations flow, and the pipeline is not emptied for them. What
the forwards and backwards of training compute does not change by a bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..planner.jobs import EvaluationSettings
from ..planner.plan import Microbatch, Plan
from ..planner.program import ActionColumns, ActionKind, Program
from .itinerary import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One look at an adapter's validation loss."""

    adapter: int
    num_steps: int
    """Steps that the adapter has behind it."""
    last_microbatch: int
    """After it the loss is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interleaved:
    """A Program with evaluations, and the plan that numbers their microbatches after its own."""

    program: Program
    plan: Plan
    by_microbatch: dict[int, Evaluation]


def is_due(step: int, settings: EvaluationSettings) -> bool:
    """Whether an evaluation follows the optimizer step of this number (from 0)."""
    return settings.eval_steps is not None and (step + 1) % settings.eval_steps == 0


def interleave(
    program: Program,
    plan: Plan,
    *,
    held_out: Sequence[Sequence[Microbatch]],
    settings: Sequence[EvaluationSettings],
) -> Interleaved:
    """Put evaluations behind the steps that are due one; `held_out` are the validation microbatches by adapter.

    With replicas, the first one evaluates.
    """
    microbatches = list(plan.microbatches)
    numbers: dict[Batch, range] = {}
    by_microbatch: dict[int, Evaluation] = {}
    for action in program.actions(stage=0):
        adapter, step = action.adapter, action.global_batch
        if action.kind is ActionKind.STEP and is_due(step, settings[adapter]) and held_out[adapter]:
            own = range(len(microbatches), len(microbatches) + len(held_out[adapter]))
            microbatches += held_out[adapter]
            numbers[adapter, step] = own
            found = Evaluation(adapter=adapter, num_steps=step + 1, last_microbatch=own[-1])
            by_microbatch |= dict.fromkeys(own, found)
    workers = tuple(
        _with_evaluations(columns, numbers) if worker < program.num_stages else columns
        for worker, columns in enumerate(program.workers)
    )
    return Interleaved(
        program=replace(program, workers=workers),
        plan=replace(plan, microbatches=tuple(microbatches)),
        by_microbatch=by_microbatch,
    )


def _with_evaluations(columns: ActionColumns, numbers: dict[Batch, range]) -> ActionColumns:
    places, inserted = [], []
    is_step = columns.kind == int(ActionKind.STEP)
    for row in np.flatnonzero(is_step).tolist():
        own = numbers.get((int(columns.adapter[row]), int(columns.global_batch[row])), range(0))
        end = row + 1
        # Steps that stand together stay together: their norms ride one message.
        while len(own) and end < len(columns) and is_step[end]:
            end += 1
        places += [end] * len(own)
        inserted += list(own)

    def put(column: NDArray[np.int32], values: Sequence[int] | int) -> NDArray[np.int32]:
        return np.insert(column, places, values)

    return ActionColumns(
        kind=put(columns.kind, int(ActionKind.EVALUATE)),
        microbatch=put(columns.microbatch, inserted),
        chunk=put(columns.chunk, 0),
        adapter=put(columns.adapter, -1),
        global_batch=put(columns.global_batch, -1),
    )
