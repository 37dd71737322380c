"""make_plan: from jobs to the one Plan that is simulated and executed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

from ..traces.costs import CostProfile
from .build_program import build_program, check_schedule_name
from .errors import PlanError
from .jobs import Job
from .packing.balance import balance
from .packing.candidates import grouping_of, stream_recipes
from .packing.lower_bounds import batch_bounds, lower_bounds
from .packing.objective import Fairness, fairness_of, full_slot_ms, predicted_makespan_ms
from .packing.pack_greedy import Bins
from .packing.pack_milp import SOLVERS
from .packing.search import Found, Progress, Search
from .packing.strategies import search_cheap, search_fair, search_milp
from .packing.targets import plan_at_target
from .packing.workload import Workload, workload_of
from .plan import Plan, SolverRecord

STRATEGIES = ("auto", "milp", "greedy", "stream")
OBJECTIVES = ("makespan", "microbatches", "fair")
_MAX_WORKERS = 2**16
"""Far beyond any pipeline, and still planned within seconds: a mistyped number must not eat all memory."""
_FILLS = (2, 4, 8, 16)
"""Parts of the capacity that microbatches may be filled to."""


def make_plan(
    jobs: Sequence[Job],
    *,
    num_stages: int,
    microbatch_tokens: int,
    num_replicas: int = 1,
    pad_multiple: int = 1,
    schedule: str = "1f1b",
    strategy: str = "auto",
    objective: str = "makespan",
    time_limit_s: float = 30.0,
    profile: CostProfile | None = None,
    data_fingerprint: str = "",
    solver: str = "auto",
    workers: int = 1,
    backend: str = "loky",
    progress: Progress | None = None,
) -> Plan:
    """The best plan that `strategy` finds within `time_limit_s`.

    strategy: `stream`, `greedy` (rounds of adapter groups), `milp` (rounds packed by a solver), `auto` (all cheap ones
    and the best of them). objective: `makespan` (slots, or predicted ms under `profile`), `microbatches`, `fair`
    (smallest worst slowdown of an adapter against its running alone, by Job.weight and Job.deadline_ms).
    Under a profile, `auto` also tries microbatches filled to less than they may hold (targets.py), and the plan names
    the 1F1B order that the profile prefers. The same input gives the same plan whatever the number of workers; a time
    limit that struck is noted in `Plan.solver`. Raises JobError or PlanError on bad input.
    """
    start = perf_counter()
    _check_choices(strategy=strategy, objective=objective, solver=solver, time_limit_s=time_limit_s)
    check_schedule_name(schedule)
    if num_stages * num_replicas > _MAX_WORKERS:
        raise PlanError(
            f"num_stages={num_stages} with num_replicas={num_replicas} are {num_stages * num_replicas} processes; "
            f"{_MAX_WORKERS} are the most that is planned for: lower one"
        )
    base = Plan(
        jobs=tuple(jobs),
        num_stages=num_stages,
        num_replicas=num_replicas,
        microbatch_tokens=microbatch_tokens,
        pad_multiple=pad_multiple,
        schedule=schedule,
        microbatches=(),
        data_fingerprint=data_fingerprint,
    )
    manner = _Manner(
        strategy=strategy,
        objective=objective,
        end_s=start + time_limit_s,
        profile=profile,
        solver=solver,
        workers=workers,
        backend=backend,
        progress=progress,
    )
    plan = _filled_plan(base, manner)
    if profile is not None:
        if strategy == "auto" and objective == "makespan":
            plan = _loosest_plan(plan, base, manner, profile=profile)
        plan = replace(plan, schedule=build_program(plan, profile=profile).schedule)
    return replace(plan, seconds=perf_counter() - start)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Manner:
    """How to search, whatever for."""

    strategy: str
    objective: str
    end_s: float
    profile: CostProfile | None
    solver: str
    workers: int
    backend: str
    progress: Progress | None


def _filled_plan(base: Plan, manner: _Manner) -> Plan:
    """The best plan whose microbatches are filled to capacity."""
    search = _new_search(base, objective=manner.objective, profile=manner.profile, end_s=manner.end_s)
    search.workers, search.backend, search.progress = manner.workers, manner.backend, manner.progress
    records: tuple[SolverRecord, ...] = ()
    if manner.objective == "fair":
        search_fair(search, _fairness(base, search=search, profile=manner.profile))
    elif manner.strategy == "milp":
        records = search_milp(search, solver=manner.solver)
    else:
        search_cheap(search, strategy=manner.strategy, waits=manner.objective != "microbatches")
    plan = _best_plan(base, search=search, profile=manner.profile if manner.objective == "makespan" else None)
    bound = search.lower.slots()
    notes = tuple(
        SolverRecord(instance="plan", status=note, num_microbatches=len(plan.microbatches), lower_bound=bound)
        for note in search.notes
    )
    return replace(plan, lower_bound_slots=bound, solver=(*records, *notes))


def _loosest_plan(full: Plan, base: Plan, manner: _Manner, *, profile: CostProfile) -> Plan:
    """The full plan, or a faster one whose microbatches are filled to a half, a quarter, ... until that harms."""

    def planner(jobs: Sequence[Job], tokens: int) -> Plan:
        return _filled_plan(replace(base, jobs=tuple(jobs), microbatch_tokens=tokens), manner)

    best, best_ms = full, predicted_makespan_ms(full, profile)
    for divisor in _FILLS:
        target = base.microbatch_tokens // divisor
        if target < max(base.pad_multiple, 1) or perf_counter() > manner.end_s:
            break
        plan = plan_at_target(
            base.jobs,
            target_tokens=target,
            microbatch_tokens=base.microbatch_tokens,
            planner=planner,
            pad_multiple=base.pad_multiple,
        )
        makespan_ms = predicted_makespan_ms(plan, profile)
        if makespan_ms > best_ms:
            break
        if makespan_ms < best_ms:
            # Equal is what no global batch reaches: what is filled less may still be faster.
            best, best_ms = plan, makespan_ms
    return best


def _new_search(base: Plan, *, objective: str, profile: CostProfile | None, end_s: float) -> Search:
    """A search that ranks bins by slots, then by microbatches; or the other way round."""
    workload = workload_of(
        base.jobs,
        microbatch_tokens=base.microbatch_tokens,
        num_stages=base.num_stages,
        num_replicas=base.num_replicas,
        pad_multiple=base.pad_multiple,
        schedule=base.schedule,
    )
    bounds = batch_bounds(workload)
    lower = lower_bounds(workload, bounds=bounds)
    search = Search(
        workload=workload,
        bounds=bounds,
        lower=lower,
        score_of=lambda bins: (workload.num_slots(bins), sum(map(bool, bins))),
        is_best_possible=lambda score: profile is None and score[0] == lower.slots(),
        end_s=end_s,
    )
    if objective == "microbatches":
        search.score_of = lambda bins: (sum(map(bool, bins)), workload.num_slots(bins))
        least = (max(lower.volume, lower.martello_toth) - 1) * base.num_replicas + 1
        search.is_best_possible = lambda score: score[0] == least
    return search


def _check_choices(*, strategy: str, objective: str, solver: str, time_limit_s: float) -> None:
    for name, value, allowed in (
        ("strategy", strategy, STRATEGIES),
        ("objective", objective, OBJECTIVES),
        ("solver", solver, SOLVERS),
    ):
        if value not in allowed:
            raise PlanError(f"{name}={value!r} is unknown; choose one of {', '.join(allowed)}")
    if objective == "fair" and strategy not in ("auto", "stream"):
        raise PlanError(f"objective=fair is planned by streaming; strategy={strategy!r} must be auto or stream")
    if not time_limit_s > 0:
        raise PlanError(f"time_limit_s={time_limit_s} must be above 0; raise it")


def _fairness(base: Plan, *, search: Search, profile: CostProfile | None) -> Fairness:
    slot_ms = None
    if profile is not None:
        first = stream_recipes(search.workload)[:1]
        search.try_all(first)
        plan = replace(base, microbatches=search.workload.microbatches(search.found.pop().bins))
        slot_ms = full_slot_ms(profile, plan=plan)
    return fairness_of(base.jobs, bounds=search.bounds, gap_slots=search.workload.gap_slots, slot_ms=slot_ms)


def _best_plan(base: Plan, *, search: Search, profile: CostProfile | None) -> Plan:
    """The best candidate as a Plan; under a profile, the one with the smallest predicted makespan."""
    plans = []
    for found in search.found if profile is not None else search.found[:1]:
        bins = balance(search.workload, found.bins, cost_of=_costs(search.workload, base, profile))
        plans.append(_plan(base, search=search, bins=bins, name=found))
    if profile is None or len(plans) == 1:
        return plans[0]
    return min(plans, key=lambda plan: predicted_makespan_ms(plan, profile))


def _plan(base: Plan, *, search: Search, bins: Bins, name: Found) -> Plan:
    groups: tuple[tuple[int, ...], ...] = ()
    if name.name == "milp":
        groups = grouping_of(0)(search.workload, range(len(base.jobs)))
    elif name.recipe is not None and name.recipe.strategy == "greedy":
        groups = grouping_of(name.recipe.num_groups)(search.workload, range(len(base.jobs)))
    return replace(base, microbatches=search.workload.microbatches(bins), strategy=name.name, adapter_groups=groups)


def _costs(workload: Workload, base: Plan, profile: CostProfile | None) -> list[float]:
    """Cost of each item: on the profile's costliest kind of work, or its tokens."""
    if profile is None:
        return [float(size) for size in workload.sizes]
    stage = profile.stages(num_stages=base.num_stages)[0]
    per_token = stage.forward_terms.per_token_ms + stage.backward_terms.per_token_ms
    per_square = stage.forward_terms.per_square_ms + stage.backward_terms.per_square_ms
    if per_token <= 0 and per_square <= 0:
        return [float(size) for size in workload.sizes]
    return [per_token * size + per_square * size * size for size in workload.sizes]
