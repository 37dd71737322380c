"""Which slot waits for which: the plan's order of optimizer steps, seen from the stream of slots.

A slot holds one microbatch per replica. A batch, here, is one (adapter, global batch). It is complete on a stage once
the last backward that holds any of it is through, and a forward that holds the adapter's next batch waits for that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import PlanError
from .plan import Plan

Batch = tuple[int, int]
"""(adapter, global batch)."""
Order = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlotDependencies:
    """The dependencies of a plan, per slot."""

    last_slot: dict[Batch, int]
    """For each batch the last slot that holds any of it; ordered by that slot, then by adapter."""
    waits_for: Order
    """For each slot the latest slot whose backward must be through before its forward; -1 where none."""
    reaches: Order
    """For each slot the last slot of any batch it holds a part of."""

    def num_slots(self) -> int:
        """Slots of the plan."""
        return len(self.waits_for)


def slot_dependencies(plan: Plan) -> SlotDependencies:
    """Dependencies between the slots of a plan. Raises PlanError where a batch starts before the one it reads ends."""
    slots = [
        [batch for microbatch in plan.slot_microbatches(slot) for batch in microbatch.global_batches()]
        for slot in range(plan.num_slots())
    ]
    last = {batch: slot for slot, batches in enumerate(slots) for batch in batches}
    for slot, batches in enumerate(slots):
        for adapter, number in batches:
            before = last.get((adapter, number - 1), -1)
            if before >= slot:
                raise PlanError(
                    f"slot {slot} holds global batch {number} of adapter {adapter}, whose global batch {number - 1} "
                    f"only ends in slot {before}; put all of it into earlier slots"
                )
    ordered = dict(sorted(last.items(), key=lambda entry: (entry[1], entry[0])))
    reaches = [max((last[batch] for batch in batches), default=slot) for slot, batches in enumerate(slots)]
    return SlotDependencies(
        last_slot=ordered,
        waits_for=np.array(waits_for(slots), dtype=np.int64),
        reaches=np.array(reaches, dtype=np.int64),
    )


def waits_for(slots: Sequence[Sequence[Batch]]) -> list[int]:
    """For slots given by the batches they hold: the latest slot each has to wait for, -1 where none."""
    last: dict[Batch, int] = {}
    found = []
    for slot, batches in enumerate(slots):
        found.append(max((last.get((adapter, number - 1), -1) for adapter, number in batches), default=-1))
        for batch in batches:
            last[batch] = slot
    return found


def slot_numbers(waits: Sequence[int] | NDArray[Any], *, gap: int) -> list[int]:
    """Times of entry, in slots, when dependents keep `gap` apart: each the smallest that the rule allows.

    slot(j) = max(slot(j - 1) + 1, slot(waits[j]) + gap). For continuous 1F1B the gap is the number of stages, and
    under uniform costs the run then takes exactly slot(last) + 1 slots of forward + backward, plus stages - 1 to fill
    and drain: no order of actions does better for this order of microbatches.
    """
    numbers: list[int] = []
    now = -1
    for wait in waits.tolist() if isinstance(waits, np.ndarray) else waits:
        now += 1
        if wait >= 0 and numbers[wait] + gap > now:
            now = numbers[wait] + gap
        numbers.append(now)
    return numbers


def gap_slots(schedule: str, *, num_stages: int) -> int:
    """Slots between dependents that cost no wait: the microbatches the first stage has in flight."""
    return 2 * num_stages - 1 if schedule == "1f1b-wide" else num_stages


def plan_slots(plan: Plan) -> int:
    """Slots a plan takes: its makespan under uniform costs / (F + B), less the stages - 1 of filling.

    Under `1f1b-wide`, which holds dependents further apart than equal costs ask for, that is the most it takes. Raises
    PlanError as `slot_dependencies` does.
    """
    gap = gap_slots(plan.schedule, num_stages=plan.num_stages)
    numbers = slot_numbers(slot_dependencies(plan).waits_for, gap=gap)
    return numbers[-1] + 1 if numbers else 0
