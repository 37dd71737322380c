"""Which slot waits for which, and what that costs in slots."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given

from loraplex.planner.dependencies import plan_slots, slot_dependencies, slot_numbers, waits_for
from loraplex.planner.errors import PlanError
from loraplex.planner.jobs import job_from_lengths
from loraplex.planner.plan import Plan, microbatch
from loraplex.tests.random_plans import even_plan, plans


def test_a_slot_waits_for_the_last_slot_of_the_batch_before() -> None:
    # Adapter 0 runs batches of two slots, adapter 1 batches of one, in the same stream.
    slots = [[(0, 0)], [(0, 0), (1, 0)], [(1, 1)], [(0, 1), (1, 2)], []]
    assert waits_for(slots) == [-1, -1, 1, 2, -1]


@pytest.mark.parametrize(
    ("gap", "numbers"),
    [(1, [0, 1, 2, 3]), (2, [0, 1, 3, 4]), (3, [0, 1, 4, 5]), (4, [0, 1, 5, 6])],
)
def test_dependents_keep_their_distance(gap: int, numbers: list[int]) -> None:
    assert slot_numbers([-1, -1, 1, 1], gap=gap) == numbers


def test_slots_are_counted_to_the_last_entry() -> None:
    # Slots 0 1 2, then 4 after slot 2, or, where seven microbatches are in flight, 7 after it.
    plan = even_plan(4, 3, num_batches=2)
    assert plan_slots(plan) == 9
    assert plan_slots(replace(plan, schedule="1f1b-wide")) == 12
    assert plan_slots(replace(plan, microbatches=())) == 0


@given(plan=plans(max_stages=8, max_replicas=3))
def test_slot_numbers_are_the_smallest_that_keep_the_rule(plan: Plan) -> None:
    waits = slot_dependencies(plan).waits_for.tolist()
    numbers = slot_numbers(waits, gap=plan.num_stages)
    for slot, number in enumerate(numbers):
        earliest = [0]
        earliest += [numbers[slot - 1] + 1] if slot else []
        earliest += [numbers[waits[slot]] + plan.num_stages] if waits[slot] >= 0 else []
        assert number == max(earliest)
    assert all(late > early for early, late in pairwise(numbers))


@given(plan=plans(max_stages=2, max_replicas=3))
def test_last_slots_and_reaches_say_where_batches_end(plan: Plan) -> None:
    found = slot_dependencies(plan)
    for slot in range(plan.num_slots()):
        held = [batch for part in plan.slot_microbatches(slot) for batch in part.global_batches()]
        assert found.reaches[slot] == max([found.last_slot[batch] for batch in held], default=slot)
    assert list(found.last_slot.values()) == sorted(found.last_slot.values())


def test_a_batch_that_starts_before_the_one_it_reads_ends_is_refused() -> None:
    job = job_from_lengths(adapter=0, name="a", lengths=[5, 5, 5], global_batch_size=2)
    first, second, third = (sample for batch in job.global_batches for sample in batch)
    plan = Plan(
        jobs=(job,),
        num_stages=2,
        microbatch_tokens=10,
        microbatches=(microbatch([first]), microbatch([third]), microbatch([second])),
    )
    with pytest.raises(
        PlanError, match="slot 1 holds global batch 1 of adapter 0, whose global batch 0 only ends in slot 2"
    ):
        slot_dependencies(plan)
