"""Greedy packing of one instance."""

from hypothesis import given, settings

from loraplex.planner.packing.pack_greedy import (
    Bins,
    best_fit_decreasing,
    first_fit_decreasing,
    instance_bound,
    occupied,
    pack_greedily,
    subset_sum_fill,
)
from loraplex.planner.packing.workload import Workload, workload_of
from loraplex.tests.random_jobs import Request, jobs_of, requests


def workload_of_lengths(*lengths: int, capacity: int = 10, pad_multiple: int = 1) -> Workload:
    return workload_of(jobs_of([[list(lengths)]]), microbatch_tokens=capacity, pad_multiple=pad_multiple)


def lengths_of(workload: Workload, bins: Bins) -> list[list[int]]:
    return [sorted((workload.sizes[item] for item in row), reverse=True) for row in bins]


def test_best_fit_takes_the_fullest_bin_that_has_room() -> None:
    workload = workload_of_lengths(5, 7, 5, 2, 4, 2, 5)
    assert lengths_of(workload, best_fit_decreasing(workload, range(7))) == [[5, 5], [7, 2], [5, 4], [2]]


def test_first_fit_takes_the_first_bin_that_has_room() -> None:
    workload = workload_of_lengths(6, 7, 3, 4)
    assert lengths_of(workload, first_fit_decreasing(workload, range(4))) == [[7, 3], [6, 4]]


def test_subset_sums_fill_what_best_fit_wastes() -> None:
    # Best fit: 6+3, 5+5, 4+4+... leaves waste; exactly filled bins need one bin less.
    workload = workload_of_lengths(6, 5, 4, 3, 2, capacity=10)
    assert lengths_of(workload, subset_sum_fill(workload, range(5))) == [[6, 4], [5, 3, 2]]


def test_padding_rounds_each_adapters_share() -> None:
    workload = workload_of(jobs_of([[[3, 3]], [[3]]]), microbatch_tokens=12, pad_multiple=4)
    assert occupied(workload, [0, 1]) == 8  # 6 rounded up
    assert occupied(workload, [0, 2]) == 8  # 4 and 4
    assert occupied(workload, [0, 1, 2]) == 12
    assert len(best_fit_decreasing(workload, [0, 1, 2])) == 1


@settings(max_examples=150)
@given(requests(max_adapters=4, max_batches=1, max_samples=8))
def test_every_packing_is_valid_and_keeps_the_bound(request: Request) -> None:
    workload = request.workload()
    items = range(len(workload.sizes))
    best = pack_greedily(workload, items)
    for pack in (best_fit_decreasing, first_fit_decreasing, subset_sum_fill, pack_greedily):
        bins = pack(workload, items)
        assert sorted(item for row in bins for item in row) == list(items)
        loads = [occupied(workload, row) for row in bins]
        assert max(loads) <= workload.capacity
        assert loads == sorted(loads, reverse=True)
        assert len(bins) >= len(best) >= instance_bound(workload, items)
