"""What a plan wastes, adapter by adapter: padding, unused capacity, and slots in which the pipeline waits."""

from dataclasses import dataclass

import numpy as np

from .dependencies import gap_slots, slot_numbers, waits_for
from .plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Waste:
    """One adapter's share of a plan."""

    num_tokens: int
    """Real tokens."""
    num_microbatches: int
    """Microbatches that hold any of it."""
    padding_tokens: int
    """Added to round its share of each microbatch up to the plan's `pad_multiple`."""
    capacity_waste_tokens: float
    """Capacity its microbatches leave unused, shared among their adapters in proportion to their padded tokens."""
    stall_slots: float
    """Slots left empty because its next step had to wait, shared among the adapters that waited equally long."""

    def padding_ratio(self) -> float:
        """Padding over padded tokens."""
        padded = self.num_tokens + self.padding_tokens
        return self.padding_tokens / padded if padded else 0.0

    def capacity_tokens(self) -> float:
        """The capacity this adapter answers for: what it fills and its share of what stays unused."""
        return self.num_tokens + self.padding_tokens + self.capacity_waste_tokens

    def capacity_waste_ratio(self) -> float:
        """Unused capacity over the capacity this adapter answers for."""
        return self.capacity_waste_tokens / self.capacity_tokens() if self.capacity_tokens() else 0.0


def waste_by_adapter(plan: Plan) -> tuple[Waste, ...]:
    """The waste of each of the plan's jobs. Over all adapters: tokens + padding + capacity waste = capacity."""
    tokens, padding, batches = (np.zeros(len(plan.jobs), dtype=np.int64) for _ in range(3))
    unused = np.zeros(len(plan.jobs))
    stalls = _stall_slots(plan)
    for batch in plan.microbatches:
        shares = [
            (adapter, real, -(-real // plan.pad_multiple) * plan.pad_multiple)
            for adapter, real in batch.adapter_tokens()
        ]
        padded_tokens = sum(padded for _, _, padded in shares)
        for adapter, real, padded in shares:
            tokens[adapter] += real
            padding[adapter] += padded - real
            batches[adapter] += 1
            unused[adapter] += (plan.microbatch_tokens - padded_tokens) * padded / padded_tokens
    return tuple(
        Waste(
            num_tokens=int(tokens[adapter]),
            num_microbatches=int(batches[adapter]),
            padding_tokens=int(padding[adapter]),
            capacity_waste_tokens=float(unused[adapter]),
            stall_slots=stalls[adapter],
        )
        for adapter in range(len(plan.jobs))
    )


def _stall_slots(plan: Plan) -> list[float]:
    gap = gap_slots(plan.schedule, num_stages=plan.num_stages)
    rows = [
        list(dict.fromkeys(step for batch in plan.slot_microbatches(slot) for step in batch.global_batches()))
        for slot in range(plan.num_slots())
    ]
    numbers = slot_numbers(waits_for(rows), gap=gap)
    stalls = [0.0] * len(plan.jobs)
    ends: dict[tuple[int, int], int] = {}
    before = -1
    for number, row in zip(numbers, rows, strict=True):
        culprits = [adapter for adapter, step in row if ends.get((adapter, step - 1), -gap) + gap == number]
        for adapter in culprits if number > before + 1 else ():
            stalls[adapter] += (number - before - 1) / len(culprits)
        ends.update(dict.fromkeys(row, number))
        before = number
    return stalls
