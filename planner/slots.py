"""Slots: when each microbatch enters the pipeline, counted in steady-state turns (F + B) of one stage.

This closed form holds for uniform costs; `recurrence.py` prices real ones.
"""

from collections.abc import Sequence

from .plan import Microbatch


def entry_slots(microbatches: Sequence[Microbatch], *, num_stages: int, num_replicas: int = 1) -> tuple[int, ...]:
    """Slot in which each row of `num_replicas` microbatches enters, waits for dependents included.

    slot(j) = max(slot(j-1) + 1, slot(last row of (a, k-1)) + num_stages for every (a, k) in row j).
    """
    last: dict[tuple[int, int], int] = {}
    slots: list[int] = []
    for first in range(0, len(microbatches), num_replicas):
        pairs = {pair for batch in microbatches[first : first + num_replicas] for pair in batch.global_batches()}
        waits = [last[adapter, batch - 1] + num_stages for adapter, batch in pairs if (adapter, batch - 1) in last]
        slots.append(max([slots[-1] + 1 if slots else 0, *waits]))
        last.update(dict.fromkeys(pairs, slots[-1]))
    return tuple(slots)


def num_slots(microbatches: Sequence[Microbatch], *, num_stages: int, num_replicas: int = 1) -> int:
    """Slots of a whole plan, stalls included: makespan under uniform costs / (F + B) - (num_stages - 1)."""
    slots = entry_slots(microbatches, num_stages=num_stages, num_replicas=num_replicas)
    return slots[-1] + 1 if slots else 0
