"""Continuous 1F1B: what it emits, word for word, and why the slot rule is the default."""

import pytest
from hypothesis import given, settings

from loraplex.planner.build_program import build_program
from loraplex.planner.check_program import check_program
from loraplex.planner.costing import program_costs
from loraplex.planner.dependencies import plan_slots
from loraplex.planner.plan import Plan
from loraplex.planner.program import ActionKind
from loraplex.planner.recurrence import makespan_ms
from loraplex.tests.random_plans import even_plan, plans
from loraplex.traces.costs import uniform_profile

CONTINUOUS = ["1f1b", "1f1b-slots", "1f1b-greedy", "1f1b-wide"]


def text(plan: Plan, schedule: str) -> list[str]:
    return build_program(plan, schedule=schedule).to_text().splitlines()


def test_one_batch_is_plain_1f1b_with_its_step_at_the_end() -> None:
    assert text(even_plan(3, 5), "1f1b-slots") == [
        "0F0 0F1 0F2 0B0 0F3 0B1 0F4 0B2 0B3 0B4 0S0.0",
        "1F0 1F1 1B0 1F2 1B1 1F3 1B2 1F4 1B3 1B4 1S0.0",
        "2F0 2B0 2F1 2B1 2F2 2B2 2F3 2B3 2F4 2B4 2S0.0",
    ]


def test_wide_warmup_keeps_nearly_twice_as_many_in_flight() -> None:
    assert text(even_plan(3, 5), "1f1b-wide") == [
        "0F0 0F1 0F2 0F3 0F4 0B0 0B1 0B2 0B3 0B4 0S0.0",
        "1F0 1F1 1F2 1B0 1F3 1B1 1F4 1B2 1B3 1B4 1S0.0",
        "2F0 2B0 2F1 2B1 2F2 2B2 2F3 2B3 2F4 2B4 2S0.0",
    ]


def test_a_step_stands_before_the_forward_that_stage_0_emits_next_on_every_stage() -> None:
    # Two batches of three, one after the other: stage 0 drains, every stage steps before forward 3.
    assert text(even_plan(2, 3, num_batches=2), "1f1b-slots") == [
        "0F0 0F1 0B0 0F2 0B1 0B2 0S0.0 0F3 0F4 0B3 0F5 0B4 0B5 0S0.1",
        "1F0 1B0 1F1 1B1 1F2 1B2 1S0.0 1F3 1B3 1F4 1B4 1F5 1B5 1S0.1",
    ]


def test_replicas_reduce_after_the_same_slot_and_skip_empty_microbatches() -> None:
    plan = even_plan(2, 3, num_replicas=2)
    assert plan.num_slots() == 2
    # Replica 1 has nothing in slot 1.
    assert text(plan, "1f1b-slots") == [
        "0F0 0F2 0B0 0B2 0R0.0 0S0.0",
        "1F0 1B0 1F2 1B2 1R0.0 1S0.0",
        "0F1 0B1 0R0.0 0S0.0",
        "1F1 1B1 1R0.0 1S0.0",
    ]


@pytest.mark.parametrize("schedule", CONTINUOUS)
@settings(max_examples=400)
@given(plan=plans(max_stages=8, max_replicas=3))
def test_every_program_passes_the_check(schedule: str, plan: Plan) -> None:
    # Wide warm-up with replicas needs receives posted two ahead, lest a Reduce's norm hold up a forward.
    ahead = 2 if schedule == "1f1b-wide" and plan.num_replicas > 1 else 1
    check_program(build_program(plan, schedule=schedule), plan, ahead=ahead)


@settings(max_examples=400)
@given(plan=plans(max_stages=8))
def test_at_equal_costs_the_slot_rule_takes_exactly_the_plans_slots_and_greedy_never_fewer(plan: Plan) -> None:
    profile = uniform_profile(forward_ms=3, backward_ms=5, num_stages=plan.num_stages)
    slots = {}
    for schedule in ("1f1b-slots", "1f1b-greedy"):
        program = build_program(plan, schedule=schedule)
        slots[schedule] = makespan_ms(program_costs(program, plan, profile)) / 8 - (plan.num_stages - 1)
    assert slots["1f1b-slots"] == pytest.approx(plan_slots(plan), abs=1e-9)
    assert slots["1f1b-greedy"] > plan_slots(plan) - 1e-9


@settings(max_examples=200)
@given(plan=plans(max_stages=8))
def test_stage_s_never_holds_more_than_its_width(plan: Plan) -> None:
    for schedule, factor in (("1f1b-slots", 1), ("1f1b-greedy", 1), ("1f1b-wide", 2)):
        program = build_program(plan, schedule=schedule)
        for stage in range(plan.num_stages):
            held = most = 0
            for action in program.actions(stage=stage):
                held += (action.kind == ActionKind.FORWARD) - (action.kind == ActionKind.BACKWARD)
                most = max(most, held)
            width = factor * (plan.num_stages - stage) - (factor - 1)
            assert most <= width


@settings(max_examples=200)
@given(plan=plans(max_stages=6))
def test_the_default_is_the_better_of_the_two_rules(plan: Plan) -> None:
    costs = [
        makespan_ms(program_costs(program, plan, profile))
        for profile in [uniform_profile(forward_ms=1, backward_ms=2, num_stages=plan.num_stages)]
        for program in (
            build_program(plan, schedule=schedule, profile=profile)
            for schedule in ("1f1b", "1f1b-slots", "1f1b-greedy")
        )
    ]
    assert costs[0] == min(costs[1:])
