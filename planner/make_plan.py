"""make_plan: from jobs to the one Plan that is simulated and executed."""

from collections.abc import Callable, Sequence
from time import perf_counter

from ..traces.costs import CostProfile
from .errors import PlanError
from .jobs import Job
from .lower_bounds import lower_bound_slots
from .pack_greedy import best_fit_decreasing
from .plan import Plan
from .stream import stream
from .workload import Workload, workload_of

STRATEGIES = ("auto", "milp", "greedy", "stream")
OBJECTIVES = ("makespan", "microbatches", "fair")
Progress = Callable[[str, float], None]
"""Told (what is being done, current gap over the lower bound)."""


def make_plan(
    jobs: Sequence[Job],
    *,
    num_stages: int,
    microbatch_tokens: int,
    num_replicas: int = 1,
    pad_multiple: int = 1,
    strategy: str = "auto",
    objective: str = "makespan",
    time_limit_s: float = 30.0,
    profile: CostProfile | None = None,
    data_fingerprint: str = "",
    workers: int = 1,
    schedule: str = "1f1b",
    progress: Progress | None = None,
) -> Plan:
    """The best plan that `strategy` finds within `time_limit_s`.

    Without `profile`, every microbatch is taken to cost the same. Raises JobError or PlanError on bad input.
    """
    start = perf_counter()
    for name, value, allowed in (("strategy", strategy, STRATEGIES), ("objective", objective, OBJECTIVES)):
        if value not in allowed:
            raise PlanError(f"{name}={value!r} is unknown; choose one of {', '.join(allowed)}")
    workload = workload_of(
        jobs,
        microbatch_tokens=microbatch_tokens,
        num_stages=num_stages,
        num_replicas=num_replicas,
        pad_multiple=pad_multiple,
    )
    bins = _greedy(workload) if strategy == "greedy" else stream(workload)
    return Plan(
        jobs=tuple(jobs),
        num_stages=num_stages,
        num_replicas=num_replicas,
        microbatch_tokens=microbatch_tokens,
        pad_multiple=pad_multiple,
        schedule=schedule,
        microbatches=workload.microbatches(bins),
        strategy="greedy" if strategy == "greedy" else "stream",
        lower_bound_slots=lower_bound_slots(workload),
        data_fingerprint=data_fingerprint,
        seconds=perf_counter() - start,
    )


def _greedy(workload: Workload) -> list[list[int]]:
    sizes = [workload.padded(size) for size in workload.sizes]
    bins: list[list[int]] = []
    for step in range(max(len(chain) for chain in workload.chains)):
        for chain in workload.chains:
            if step < len(chain):
                packed = best_fit_decreasing(chain[step], sizes=sizes, capacity=workload.capacity)
                bins += packed + [[]] * (-len(packed) % workload.num_replicas)
    return bins
