"""Replicas of one slot get even work."""

from hypothesis import given, settings

from loraplex.planner.packing.balance import balance
from loraplex.planner.packing.pack_greedy import occupied
from loraplex.planner.packing.stream import StreamPolicy, stream
from loraplex.planner.packing.workload import workload_of
from loraplex.tests.random_jobs import Request, jobs_of, requests


def test_longest_first_to_the_replica_with_the_least() -> None:
    workload = workload_of(jobs_of([[[5, 4, 1, 2]]]), microbatch_tokens=12, num_replicas=2)
    assert balance(workload, [[0, 1, 2, 3], []], cost_of=[5.0, 4.0, 1.0, 2.0]) == [[0, 2], [1, 3]]


def test_costs_need_not_be_tokens() -> None:
    workload = workload_of(jobs_of([[[5, 4, 1]]]), microbatch_tokens=12, num_replicas=2)
    assert balance(workload, [[0, 2], [1]], cost_of=[1.0, 1.0, 9.0]) == [[2], [0, 1]]


def test_a_slot_that_would_overflow_stays_as_it_is() -> None:
    workload = workload_of(jobs_of([[[6, 3, 3, 5, 3]]]), microbatch_tokens=11, num_replicas=2)
    even = [[0, 3], [1, 2, 4]]
    assert balance(workload, even, cost_of=[float(size) for size in workload.sizes]) == even


def test_one_replica_needs_no_balance() -> None:
    workload = workload_of(jobs_of([[[5, 4]]]), microbatch_tokens=10)
    assert balance(workload, [[0, 1]], cost_of=[1.0, 1.0]) == [[0, 1]]


@settings(max_examples=100)
@given(requests(max_replicas=3))
def test_the_costliest_replica_never_gets_worse(request: Request) -> None:
    workload = request.workload()
    bins = stream(workload, policy=StreamPolicy(margin_slots=0))
    cost_of = [float(size * size) for size in workload.sizes]
    balanced = balance(workload, bins, cost_of=cost_of)
    assert len(balanced) == len(bins)
    for first in range(0, len(bins), workload.num_replicas):
        before, after = (rows[first : first + workload.num_replicas] for rows in (bins, balanced))
        assert sorted(item for row in after for item in row) == sorted(item for row in before for item in row)
        assert all(occupied(workload, row) <= workload.capacity for row in after)
        costs = [[sum(cost_of[item] for item in row) for row in rows] for rows in (before, after)]
        assert max(costs[1]) <= max(costs[0])
