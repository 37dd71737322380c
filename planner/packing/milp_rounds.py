"""Rounds packed by the MILP: every (adapter group, step) is one instance, solved alone or side by side in processes."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from time import time

from ..plan import SolverRecord
from .grouping import Grouping
from .merge import merge, rows
from .pack_greedy import Bins, instance_bound, pack_greedily
from .pack_milp import MilpLimits, PackResult, pack_milp
from .parallel import side_by_side
from .rounds import round_instances
from .workload import Workload

Task = tuple[Workload, list[int], MilpLimits, str, float]
"""The last entry: the time of day, in seconds, at which the whole plan must be done."""


def pack_milp_rounds(
    workload: Workload,
    *,
    grouping: Grouping,
    limits: MilpLimits,
    time_limit_s: float,
    workers: int = 1,
    backend: str = "loky",
    progress: Callable[[str, float], None] | None = None,
) -> tuple[Bins, tuple[SolverRecord, ...]]:
    """Merged bins of all rounds and what the solver did. What the time does not reach keeps its greedy packing."""
    end = time() + time_limit_s
    tasks = [
        (workload, items, limits, f"step {step}, adapters {'+'.join(str(adapter) for adapter in members)}", end)
        for step, members, items in round_instances(workload, grouping=grouping)
    ]
    results: list[PackResult] = []
    for result in _until(end, tasks, workers=workers, backend=backend):
        results.append(result)
        if progress is not None:
            progress(f"packing {len(results)} of {len(tasks)}", 0.0)
    for task in tasks[len(results) :]:
        results.append(_greedy(task))
    bins = [list(items) for result in results for items in result.bins]
    return rows(workload, merge(workload, bins)), tuple(result.record for result in results)


def _until(end: float, tasks: list[Task], *, workers: int, backend: str) -> Iterator[PackResult]:
    solved = side_by_side(_solve, tasks, workers=workers, backend=backend)
    try:
        while time() < end:
            yield next(solved)
    except (StopIteration, KeyboardInterrupt):
        return


def _solve(task: Task) -> PackResult:
    workload, items, limits, instance, end = task
    left = max(0.05, min(limits.time_limit_s, end - time()))
    return pack_milp(workload, items, limits=replace(limits, time_limit_s=left), instance=instance)


def _greedy(task: Task) -> PackResult:
    workload, items, _, instance, _ = task
    bins = pack_greedily(workload, items)
    record = SolverRecord(
        instance=instance,
        status="time of the plan was up, greedy kept",
        num_microbatches=len(bins),
        lower_bound=instance_bound(workload, items),
    )
    return PackResult(bins=tuple(tuple(row) for row in bins), record=record)
