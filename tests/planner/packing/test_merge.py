"""Merging never breaks a rule, never costs a slot, and sees both sides of a move."""

from hypothesis import given, settings

from loraplex.planner.packing.grouping import balanced, head_tail, singletons
from loraplex.planner.packing.merge import merge, rows
from loraplex.planner.packing.pack_greedy import best_fit_decreasing
from loraplex.planner.packing.rounds import pack_rounds
from loraplex.planner.packing.workload import workload_of
from loraplex.planner.plan import Plan
from loraplex.planner.verify import verify
from loraplex.tests.random_jobs import Request, jobs_of, requests


def test_a_light_microbatch_is_emptied_into_its_neighbours() -> None:
    workload = workload_of(jobs_of([[[8, 3]], [[6]], [[9]]]), microbatch_tokens=10)
    assert merge(workload, [[0], [1], [2], [3]]) == [[0], [2, 1], [3]]


def test_it_is_dealt_out_sample_by_sample() -> None:
    workload = workload_of(jobs_of([[[8]], [[2, 3]], [[7]]]), microbatch_tokens=10)
    assert merge(workload, [[0], [1, 2], [3]]) == [[0, 1], [3, 2]]


def test_the_givers_own_wait_is_kept() -> None:
    # a0's second step (item 1) could join item 2 by room, but would then stand 1 after its first step, not 3.
    workload = workload_of(jobs_of([[[9], [2]], [[7]], [[9]], [[9]]]), microbatch_tokens=10, num_stages=4)
    assert merge(workload, [[0], [2], [3], [4], [1]]) == [[0], [2], [3], [4], [1]]
    # With two stages both may share a microbatch: here the other one moves.
    near = workload_of(jobs_of([[[9], [2]], [[9]], [[7]], [[9]]]), microbatch_tokens=10, num_stages=2)
    assert merge(near, [[0], [2], [3], [4], [1]]) == [[0], [2], [4], [1, 3]]


def test_the_wait_across_an_emptied_microbatch_is_kept() -> None:
    # Without item 2 between them, the steps of a0 would be 1 apart where 2 are needed.
    workload = workload_of(jobs_of([[[7], [7]], [[3]]]), microbatch_tokens=10, num_stages=2)
    merged = merge(workload, [[0], [2], [1]])
    assert workload.num_slots(merged) == 3


@settings(max_examples=200)
@given(requests(max_replicas=3))
def test_random_merges_keep_every_rule(request: Request) -> None:
    workload = request.workload()
    for grouping in (head_tail, singletons, balanced(1)):
        one = workload_of(
            request.jobs,
            microbatch_tokens=request.microbatch_tokens,
            num_stages=request.num_stages,
            pad_multiple=request.pad_multiple,
        )
        packed = [row for row in pack_rounds(one, grouping=grouping, pack=best_fit_decreasing) if row]
        merged = merge(one, packed)
        assert len(merged) <= len(packed)
        assert one.num_slots(merged) <= one.num_slots(packed)
        plan = Plan(
            jobs=request.jobs,
            num_stages=request.num_stages,
            num_replicas=request.num_replicas,
            microbatch_tokens=request.microbatch_tokens,
            pad_multiple=request.pad_multiple,
            microbatches=workload.microbatches(rows(workload, merged)),
        )
        assert verify(plan) == ()


def test_rows_keep_dependents_out_of_one_slot() -> None:
    workload = workload_of(jobs_of([[[9, 9], [9]], [[9]]]), microbatch_tokens=10, num_replicas=2)
    assert rows(workload, [[0], [1], [2], [3]]) == [[0], [1], [2], [3]]
    assert rows(workload, [[0], [2], [3]]) == [[0], [], [2], [3]]
