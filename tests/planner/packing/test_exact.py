"""The exact search on instances small enough to think through."""

from loraplex.planner.packing.exact import fewest_slots
from loraplex.planner.packing.lower_bounds import batch_bounds
from loraplex.planner.packing.workload import workload_of
from loraplex.tests.random_jobs import jobs_of


def test_it_pairs_what_fills_both_slots() -> None:
    workload = workload_of(jobs_of([[[6, 5, 5, 4]]]), microbatch_tokens=10)
    bins, proved = fewest_slots(workload, bounds=batch_bounds(workload), at_least=1, below=9, max_nodes=100)
    assert proved
    assert bins is not None
    assert sorted(sorted(row) for row in bins) == [[0, 3], [1, 2]]


def test_it_says_when_nothing_is_better() -> None:
    workload = workload_of(jobs_of([[[6], [6]]]), microbatch_tokens=10, num_stages=3)
    bounds = batch_bounds(workload)
    assert fewest_slots(workload, bounds=bounds, at_least=1, below=4, max_nodes=100) == (None, True)
    assert fewest_slots(workload, bounds=bounds, at_least=1, below=5, max_nodes=100) == ([[0], [1]], True)


def test_it_gives_up_at_its_node_limit() -> None:
    workload = workload_of(jobs_of([[[6, 5, 5, 4]], [[3, 3, 2], [7]]]), microbatch_tokens=10, num_stages=2)
    assert fewest_slots(workload, bounds=batch_bounds(workload), at_least=3, below=9, max_nodes=1) == (None, False)
