"""What each strategy tries: candidates added to a Search, which keeps the best of them."""

from dataclasses import replace
from time import perf_counter

from ..plan import SolverRecord
from .candidates import greedy_recipes, grouping_of, stream_recipes
from .exact import fewest_slots
from .milp_rounds import pack_milp_rounds
from .objective import Fairness, adapter_ends
from .pack_milp import MilpLimits
from .search import Found, Search, search_staggers

_EXACT_ITEMS, _EXACT_NODES = 14, 5000
"""Workloads up to this many samples are searched exactly, up to this many nodes: some milliseconds."""
_FAIR_STEPS = 10
"""Halvings of the interval in which the smallest slowdown that can be kept is sought."""


def search_cheap(search: Search, *, strategy: str, waits: bool) -> None:
    """By `strategy` sweeps (stream), rounds (greedy) or both and exact search (auto).

    Without `waits` also such as forget the wait between steps, for when microbatches count and time does not.
    """
    sweeps = stream_recipes(search.workload) if strategy != "greedy" else ()
    rounds = greedy_recipes(search.workload) if strategy != "stream" else ()
    if not waits:
        sweeps += tuple(replace(recipe, waits=False) for recipe in sweeps)
        rounds += tuple(replace(recipe, waits=False) for recipe in rounds)
    if sweeps:
        # One by itself first: most easy workloads need no more, and no processes need to be started for them.
        search.try_all(sweeps[:1])
        search.try_all(sweeps[1:])
        search_staggers(search, sweeps)
    search.try_all(rounds)
    if strategy == "auto" and not search.stopped() and len(search.workload.sizes) <= _EXACT_ITEMS:
        _search_exactly(search)


def _search_exactly(search: Search) -> None:
    """For small workloads: fewer slots than any candidate took, if there is such a plan."""
    workload = search.workload
    fewest = min(workload.num_slots(found.bins) for found in search.found)
    if workload.num_replicas == 1:
        bins, _ = fewest_slots(
            workload, bounds=search.bounds, at_least=search.lower.slots(), below=fewest, max_nodes=_EXACT_NODES
        )
        if bins is not None:
            search.add(Found(score=search.score_of(bins), bins=bins, name="exact"))


def search_milp(search: Search, *, solver: str) -> tuple[SolverRecord, ...]:
    """Rounds packed by a solver, in what time is left; what it said of each."""
    time_limit_s = max(search.end_s - perf_counter(), 0.01)
    bins, records = pack_milp_rounds(
        search.workload,
        grouping=grouping_of(0),
        limits=MilpLimits(solver=solver, time_limit_s=min(5.0, time_limit_s)),
        time_limit_s=time_limit_s,
        workers=search.workers,
        backend=search.backend,
        progress=search.progress,
    )
    search.add(Found(score=search.score_of(bins), bins=bins, name="milp"))
    return records


def search_fair(search: Search, fairness: Fairness) -> None:
    """Sweeps against due slots: the smallest common slowdown that every adapter can keep, by halving."""
    workload = search.workload
    search.score_of = lambda bins: (*fairness.score(adapter_ends(workload, bins)), workload.num_slots(bins))
    search.is_best_possible = lambda score: False
    sweeps = stream_recipes(workload)
    search.try_all(sweeps)
    low, high = 1.0, 2 * search.found[0].score[1]
    for step in range(_FAIR_STEPS):
        # The first try is easy, so that deadlines are met before slowdowns are evened out.
        slowdown = high if step == 0 else (low + high) / 2
        search.try_all([replace(recipe, due=fairness.due(slowdown)) for recipe in sweeps])
        if search.notes:
            return
        if search.found[0].score[1] <= slowdown:
            high = min(slowdown, search.found[0].score[1])
        else:
            low = slowdown
