"""What is left of a Program after a checkpoint, for the engine that resumes and for the simulator that foretells it.

The cut behind a slot (a microbatch, with one replica) lies where stage 0 ends the backward of that slot. Every worker
then holds the steps that stage 0 of any replica had taken, and the reduced gradients of the batches that the slot made
whole; gradients of later slots are dropped, their passes run anew.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .plan import Plan
from .program import ActionColumns, ActionKind, Program

Batch = tuple[int, int]
"""(adapter, global batch)."""
_GRADIENTS = (int(ActionKind.BACKWARD), int(ActionKind.BACKWARD_WEIGHT))


def program_after(program: Program, plan: Plan, *, slot: int) -> Program:
    """What is left after the cut behind `slot` (-1: everything), told from plan and Program alone.

    What a checkpoint of the engine behind the same microbatch leaves, and the same for Programs that it does not run.
    """
    last = {
        batch: place // program.num_replicas
        for place, held in enumerate(plan.microbatches)
        for batch in held.global_batches()
    }
    whole = {batch for batch, at in last.items() if at <= slot}
    stepped: set[Batch] = set()
    for replica in range(program.num_replicas):
        columns = program.columns(stage=0, replica=replica)
        done = _rows(columns, np.arange(cut_place(columns, slot=slot, num_replicas=program.num_replicas)))
        stepped |= _batches(done, ActionKind.STEP)
    versions = [0] * len(plan.jobs)
    for adapter, _ in stepped:
        versions[adapter] += 1
    return remaining(program, slot=slot, versions=versions, pending=whole - stepped)


def remaining(program: Program, *, slot: int, versions: Sequence[int], pending: Collection[Batch]) -> Program:
    """What is left to do after the cut behind `slot`, on any number of stages.

    `versions` are the steps each adapter has taken, `pending` the batches whose gradients are whole (with replicas:
    reduced) but not stepped: their steps come before all forwards, since all that they need is in the checkpoint.
    """
    workers = tuple(
        _remaining(columns, first=slot + 1, versions=versions, pending=pending, num_replicas=program.num_replicas)
        for columns in program.workers
    )
    return replace(program, workers=workers)


def cut_place(columns: ActionColumns, *, slot: int, num_replicas: int) -> int:
    """How many of a worker's actions lie before the cut: up to the last backward of this slot and those before it."""
    earlier = (columns.microbatch >= 0) & (columns.microbatch // num_replicas <= slot)
    gradients = np.flatnonzero(earlier & np.isin(columns.kind, _GRADIENTS))
    return int(gradients[-1]) + 1 if len(gradients) else 0


def _batches(columns: ActionColumns, kind: ActionKind) -> set[Batch]:
    own = columns.kind == int(kind)
    return set(zip(columns.adapter[own].tolist(), columns.global_batch[own].tolist(), strict=True))


def _remaining(
    columns: ActionColumns, *, first: int, versions: Sequence[int], pending: Collection[Batch], num_replicas: int
) -> ActionColumns:
    on_microbatch = columns.microbatch >= 0
    waits = np.zeros(len(columns), dtype=bool)
    for adapter, global_batch in pending:
        waits |= ~on_microbatch & (columns.adapter == adapter) & (columns.global_batch == global_batch)
    # Adapter -1 of an action on a microbatch looks up a version that is not read.
    untaken = columns.global_batch >= np.asarray(versions)[columns.adapter]
    later: NDArray[np.bool_] = np.where(on_microbatch, columns.microbatch >= first * num_replicas, untaken & ~waits)
    opening = np.flatnonzero(waits & (columns.kind == int(ActionKind.STEP)))
    left = np.flatnonzero(later)
    return _rows(columns, np.insert(left, _first_step(columns.kind[left]), opening))


def _first_step(kinds: NDArray[np.int32]) -> int:
    # Where the steps before the first forward begin (without a forward: the last ones). Reduces may stand before them,
    # and must: what a step waits for comes with the forward, which an earlier stage sends when it has reduced.
    forwards = np.flatnonzero(kinds == int(ActionKind.FORWARD))
    place = int(forwards[0]) if len(forwards) else len(kinds)
    while place and kinds[place - 1] == int(ActionKind.STEP):
        place -= 1
    return place


def _rows(columns: ActionColumns, places: NDArray[np.int64]) -> ActionColumns:
    return ActionColumns(
        kind=columns.kind[places],
        microbatch=columns.microbatch[places],
        chunk=columns.chunk[places],
        adapter=columns.adapter[places],
        global_batch=columns.global_batch[places],
    )
