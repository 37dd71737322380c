"""What a plan wastes, adapter by adapter, and when each adapter is done."""

from dataclasses import dataclass

import numpy as np

from ..planner.plan import Plan
from ..traces.timeline import Timeline
from .actions import BACKWARDS, letters, step_targets


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
        )
        for adapter in range(len(plan.jobs))
    )


def completions_ms(timeline: Timeline, plan: Plan) -> tuple[float | None, ...]:
    """When each adapter's last Step ends on any stage, from the start of the run.

    Where a timeline records no Steps, its last backward counts. None where the adapter does not appear at all.
    """
    compute = timeline.compute()
    if not len(compute):
        return (None,) * len(plan.jobs)
    start_ms = float(compute["start_ms"].min())
    kinds = letters(compute["action"])
    steps = compute[kinds == "S"]
    ends: dict[int, float] = {}
    if len(steps):
        owners = step_targets(steps["action"])["adapter"]
        ends = {int(str(adapter)): float(end) for adapter, end in steps["end_ms"].groupby(owners).max().items()}
    else:
        backwards = compute[np.isin(kinds, BACKWARDS)]
        last_end = backwards.groupby("microbatch")["end_ms"].max()
        for index, end_ms in last_end.items():
            for adapter, _ in plan.microbatches[int(str(index))].adapter_tokens():
                ends[adapter] = max(ends.get(adapter, 0.0), float(end_ms))
    return tuple(ends[adapter] - start_ms if adapter in ends else None for adapter in range(len(plan.jobs)))
