"""When each adapter of a plan is done."""

import numpy as np

from ..planner.plan import Plan
from ..traces.timeline import Timeline
from .actions import BACKWARDS, letters, step_targets


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
