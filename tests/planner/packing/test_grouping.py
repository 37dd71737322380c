"""Which adapters share microbatches."""

from loraplex.planner.packing.grouping import balanced, head_tail, singletons
from loraplex.planner.packing.pack_greedy import best_fit_decreasing
from loraplex.planner.packing.rounds import pack_rounds, round_instances
from loraplex.planner.packing.workload import Workload, workload_of
from loraplex.tests.random_jobs import jobs_of


def four_adapters(*, num_stages: int) -> Workload:
    batches = [[[9, 9]] * 3, [[6, 6]] * 3, [[4, 4]] * 2, [[2, 2]] * 3]
    return workload_of(jobs_of(batches), microbatch_tokens=10, num_stages=num_stages)


def test_longest_with_shortest_where_the_others_fill_the_wait() -> None:
    # Bins a step needs at least: 2, 2, 1, 1. A pair leaves 3 of them to the others: enough for 4 stages, not for 5.
    assert head_tail(four_adapters(num_stages=4), range(4)) == ((0, 3), (1, 2))
    assert head_tail(four_adapters(num_stages=5), range(4)) == ((0,), (1,), (2, 3))


def test_where_staggering_cannot_work_adapters_stay_apart() -> None:
    assert head_tail(four_adapters(num_stages=8), range(4)) == ((0,), (1,), (2,), (3,))
    assert head_tail(four_adapters(num_stages=4), [2]) == ((2,),)
    assert singletons(four_adapters(num_stages=1), [0, 3]) == ((0,), (3,))


def test_groups_of_any_size_share_the_tokens() -> None:
    workload = four_adapters(num_stages=1)
    assert balanced(1)(workload, range(4)) == ((0, 1, 2, 3),)
    assert balanced(2)(workload, range(4)) == ((0, 3), (1, 2))
    assert balanced(9)(workload, [1, 2]) == ((1,), (2,))


def test_groups_are_formed_anew_when_an_adapter_has_finished() -> None:
    workload = four_adapters(num_stages=2)
    assert [(step, members) for step, members, _ in round_instances(workload, grouping=head_tail)] == [
        (0, (0, 3)),
        (0, (1, 2)),
        (1, (0, 3)),
        (1, (1, 2)),
        (2, (0, 3)),
        (2, (1,)),
    ]


def test_rounds_enter_step_by_step() -> None:
    workload = workload_of(jobs_of([[[6], [5]], [[3]]]), microbatch_tokens=10)
    assert pack_rounds(workload, grouping=singletons, pack=best_fit_decreasing) == [[0], [2], [1]]
    assert pack_rounds(workload, grouping=balanced(1), pack=best_fit_decreasing) == [[0, 2], [1]]
