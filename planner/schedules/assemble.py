"""From the order of forwards and backwards to a whole Program: microbatches for slots, Reduce and Step in their places.

The one writer of where an optimizer step stands. Let x be the first forward that stage 0 emits after the last
gradient of a batch. Every stage runs the batch's Step immediately before forward x, so that the norm of the gradient
over all stages, summed up on the way to stage 0, comes down with x's activations: exact clipping without a stall.
Steps that have no later forward end the Program.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..dependencies import SlotDependencies
from ..plan import Plan
from ..program import ActionColumns, ActionKind, Program
from .order import StageOrder

_GRADIENTS = (int(ActionKind.BACKWARD), int(ActionKind.BACKWARD_WEIGHT))
Table = NDArray[np.int32]
"""Rows of (kind, microbatch, chunk, adapter, global batch)."""


def assemble(
    plan: Plan,
    dependencies: SlotDependencies,
    orders: Sequence[StageOrder],
    *,
    schedule: str,
    num_chunks: int = 1,
) -> Program:
    """The Program in which every stage follows its order, on every replica."""
    replicas, stages = plan.num_replicas, plan.num_stages
    filled = np.zeros(dependencies.num_slots() * replicas, dtype=bool)
    filled[: len(plan.microbatches)] = [bool(microbatch.samples) for microbatch in plan.microbatches]
    batches = np.array(list(dependencies.last_slot), dtype=np.int32).reshape(-1, 2)
    last_slots = np.array(list(dependencies.last_slot.values()), dtype=np.int64)
    first_forward = _next_forward_slots(orders[0], last_slots)
    workers = []
    for replica in range(replicas):
        own = filled[replica::replicas]
        step_slots = _next_filled(own, first_forward)
        for stage in range(stages):
            table = _slot_table(orders[stage])
            if replicas > 1:
                after = _done(orders[stage], last_slots) + 1
                table = np.insert(table, after, _rows(ActionKind.REDUCE, batches), axis=0)
            table = _of_replica(table, own, replica=replica, num_replicas=replicas)
            workers.append(_columns(_with_steps(table, step_slots, batches, num_replicas=replicas)))
    return Program(
        schedule=schedule, num_stages=stages, num_replicas=replicas, num_chunks=num_chunks, workers=tuple(workers)
    )


def _done(order: StageOrder, last_slots: NDArray[np.int64]) -> NDArray[np.int64]:
    # Place of the last gradient of each batch. Gradients of one slot may stand several times (chunks): the last counts.
    places = np.flatnonzero(np.isin(order.kind, _GRADIENTS))
    latest = np.zeros(int(order.slot.max(initial=-1)) + 1, dtype=np.int64)
    np.maximum.at(latest, order.slot[places], places)
    return latest[last_slots]


def _next_forward_slots(order: StageOrder, last_slots: NDArray[np.int64]) -> NDArray[np.int64]:
    # Slot of the first forward after each batch's last gradient on stage 0; the number of slots where none follows.
    forwards = np.flatnonzero((order.kind == int(ActionKind.FORWARD)) & (order.chunk == 0))
    found = np.searchsorted(forwards, _done(order, last_slots))
    slots = np.append(order.slot[forwards].astype(np.int64), len(forwards))
    return slots[found]


def _next_filled(filled: NDArray[np.bool_], slots: NDArray[np.int64]) -> NDArray[np.int64]:
    # The first slot from each on in which this replica has work: an empty slot has no forward to stand before.
    work = np.append(np.flatnonzero(filled), len(filled))
    return work[np.searchsorted(work, slots)]


def _slot_table(order: StageOrder) -> Table:
    absent = np.full(len(order.kind), -1, dtype=np.int32)
    return np.stack([order.kind, order.slot, order.chunk, absent, absent], axis=1)


def _rows(kind: ActionKind, batches: NDArray[np.int32]) -> Table:
    rows = np.zeros((len(batches), 5), dtype=np.int32)
    rows[:, 0], rows[:, 1], rows[:, 3:] = int(kind), -1, batches
    return rows


def _of_replica(table: Table, filled: NDArray[np.bool_], *, replica: int, num_replicas: int) -> Table:
    on_slot = table[:, 1] >= 0
    keep = ~on_slot | filled[table[:, 1]]
    table = table.copy()
    table[on_slot, 1] = table[on_slot, 1] * num_replicas + replica
    return table[keep]


def _with_steps(table: Table, step_slots: NDArray[np.int64], batches: NDArray[np.int32], *, num_replicas: int) -> Table:
    forwards = np.flatnonzero((table[:, 0] == int(ActionKind.FORWARD)) & (table[:, 2] == 0))
    place = np.full(int(step_slots.max(initial=0)) + 1, len(table), dtype=np.int64)
    slots = table[forwards, 1] // num_replicas
    near = slots < len(place)
    place[slots[near]] = forwards[near]
    return np.insert(table, place[step_slots], _rows(ActionKind.STEP, batches), axis=0)


def _columns(table: Table) -> ActionColumns:
    kind, microbatch, chunk, adapter, global_batch = (np.ascontiguousarray(column) for column in table.T)
    return ActionColumns(kind=kind, microbatch=microbatch, chunk=chunk, adapter=adapter, global_batch=global_batch)
