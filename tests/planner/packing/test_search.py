"""The search: a fixed order, the earliest of equals, and what stops it."""

from time import perf_counter

from loraplex.planner.packing.candidates import (
    Recipe,
    follow,
    greedy_recipes,
    neighbour,
    num_staggers,
    random_staggers,
    stream_recipes,
)
from loraplex.planner.packing.lower_bounds import batch_bounds, lower_bounds
from loraplex.planner.packing.pack_greedy import Bins
from loraplex.planner.packing.search import Found, Search, best_recipes
from loraplex.planner.packing.workload import Workload, workload_of
from loraplex.tests.random_jobs import jobs_of


def small_workload() -> Workload:
    return workload_of(jobs_of([[[9, 5], [7]], [[6], [6], [4]], [[3, 2]]]), microbatch_tokens=10, num_stages=3)


def new_search(workload: Workload) -> Search:
    bounds = batch_bounds(workload)
    return Search(
        workload=workload,
        bounds=bounds,
        lower=lower_bounds(workload, bounds=bounds),
        score_of=lambda bins: (workload.num_slots(bins),),
        is_best_possible=lambda score: False,
        end_s=perf_counter() + 60.0,
    )


def found(score: float, name: str) -> Found:
    bins: Bins = [[0, 5]]
    return Found(score=(score,), bins=bins, name=name)


def test_the_best_are_kept_and_the_earlier_of_equals_first() -> None:
    search = new_search(small_workload())
    search.keep = 3
    for score, name in ((5, "a"), (4, "b"), (4, "c"), (9, "d"), (3, "e")):
        search.add(found(score, name))
    assert [entry.name for entry in search.found] == ["e", "b", "c"]


def test_it_stops_when_nothing_can_be_better() -> None:
    search = new_search(small_workload())
    search.is_best_possible = lambda score: True
    search.try_all(stream_recipes(search.workload))
    search.improve(count=5)
    assert (search.num_tried, search.notes) == (1, [])


def test_local_search_never_loses_what_it_started_from() -> None:
    search = new_search(small_workload())
    search.try_all(stream_recipes(search.workload)[:1])
    before = search.found[0].score
    search.improve(count=10)
    assert search.num_tried == 11
    assert search.found[0].score <= before


def test_recipes_are_tried_in_full_and_repeat_themselves() -> None:
    workload = small_workload()
    bounds = batch_bounds(workload)
    recipes = (*stream_recipes(workload), *greedy_recipes(workload))
    results = [follow(recipe, workload, bounds=bounds) for recipe in recipes]
    assert results == [follow(recipe, workload, bounds=bounds) for recipe in recipes]
    assert all(sorted(item for row in bins for item in row) == list(range(8)) for bins in results)


def test_staggers_come_from_fixed_seeds() -> None:
    recipes = stream_recipes(small_workload())[:2]
    staggered = random_staggers(recipes, count=5, num_adapters=3, num_slots=100)
    assert staggered == random_staggers(recipes, count=5, num_adapters=3, num_slots=100)
    assert [recipe.policy for recipe in staggered] == [recipes[number % 2].policy for number in range(5)]
    assert len({recipe.offsets for recipe in staggered}) == 5
    assert all(0 <= offset <= 21 for recipe in staggered for offset in recipe.offsets)


def test_a_neighbour_differs_in_one_adapter() -> None:
    recipe = Recipe(strategy="stream", policy=stream_recipes(small_workload())[0].policy, offsets=(1, 2, 3))
    for seed in range(20):
        near = neighbour(recipe, seed=seed, num_adapters=3, num_slots=100)
        assert sum(a != b for a, b in zip(near.offsets, recipe.offsets, strict=True)) <= 1
    assert len(neighbour(stream_recipes(small_workload())[0], seed=1, num_adapters=3, num_slots=100).offsets) == 3


def test_long_plans_get_fewer_staggers() -> None:
    assert [num_staggers(slots) for slots in (1, 300, 1500, 20_000)] == [48, 30, 6, 0]


def test_only_sweeps_can_be_staggered() -> None:
    sweep = Recipe(strategy="stream", policy=stream_recipes(small_workload())[0].policy)
    entries = [
        Found(score=(1,), bins=[], name="milp"),
        Found(score=(2,), bins=[], name="greedy", recipe=Recipe(strategy="greedy")),
        Found(score=(3,), bins=[], name="stream", recipe=sweep),
    ]
    assert best_recipes(entries, count=3) == (sweep,)
