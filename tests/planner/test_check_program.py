"""The offline check: what it refuses, and in which words."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex.planner import deadlock
from loraplex.planner.build_program import build_program
from loraplex.planner.check_program import check_program
from loraplex.planner.deadlock import require_progress
from loraplex.planner.errors import PlanError
from loraplex.planner.graph import program_graph
from loraplex.planner.plan import Plan
from loraplex.planner.program import Program
from loraplex.tests.random_plans import even_plan, plans

PLAN = even_plan(2, 2, num_batches=2)
GOOD = (
    "0F0 0F1 0B0 0B1 0S0.0 0F2 0F3 0B2 0B3 0S0.1",
    "1F0 1B0 1F1 1B1 1S0.0 1F2 1B2 1F3 1B3 1S0.1",
)


def check(lines: tuple[str, ...], plan: Plan = PLAN) -> None:
    check_program(Program.from_text("\n".join(lines) + "\n", num_stages=plan.num_stages), plan)


def test_the_good_one_passes() -> None:
    check(GOOD)


@pytest.mark.parametrize(
    ("line", "new", "message"),
    [
        (0, "0F0 0F1 0B0 0B1 0F2 0S0.0 0F3 0B2 0B3 0S0.1", "stage 0: 0F2 reads adapter 0 after its global batch 0"),
        (0, "0F0 0F1 0B0 0S0.0 0B1 0F2 0F3 0B2 0B3 0S0.1", "stage 0: 0S0.0 comes before 1 of its backwards"),
        (0, "0F0 0F1 0B0 0B1 0S0.0 0F2 0F3 0B2 0B3", "stage 0: 0S0.1 is missing; every batch has one Step"),
        (1, "1F0 1B0 1F1 1B1 1S0.0 1S0.0 1F2 1B2 1F3 1B3 1S0.1", "stage 1: 1S0.0 stands twice"),
        (1, "1F0 1B0 1F1 1B1 1S0.0 1F2 1B2 1F3 1B3 1S0.1 1S0.2", "stage 1: 1S0.2 is a batch that the plan has not"),
        (0, "0F0 0F1 0B0 0B1 0S0.0 0F2 0F3 0B2 0S0.1", "stage 0: 0S0.1 comes before 1 of its backwards"),
        (0, "0F0 0B0 0B1 0F1 0S0.0 0F2 0F3 0B2 0B3 0S0.1", "stage 0: 0B1 stands before its forward"),
        (0, "0F0 0F1 0F1 0B0 0B1 0S0.0 0F2 0F3 0B2 0B3 0S0.1", "stage 0: 0F1 stands twice"),
        (1, "1F0 1B0 1F1 1B1 1S0.0 1F2 1B2 1F3 1B3 1S0.1 1F4 1B4", "stage 1: 1F4 is no microbatch of this"),
        (1, "1F0 1I0 1B0 1F1 1B1 1S0.0 1F2 1B2 1F3 1B3 1S0.1", "stage 1: 1B0 has both a whole and a split backward"),
        (1, "1F0 1W0 1I0 1F1 1B1 1S0.0 1F2 1B2 1F3 1B3 1S0.1", "stage 1: 1W0 stands before its backward_input"),
        (0, "0F0 0F1 0B0 0B1 0S0.0 0F3 0F2 0B2 0B3 0S0.1", "part 0 sends microbatch 3 to part 1, which expects"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_named_with_stage_and_action(line: int, new: str, message: str) -> None:
    lines = tuple(new if number == line else old for number, old in enumerate(GOOD))
    with pytest.raises(PlanError, match=message):
        check(lines)


def test_steps_of_one_adapter_keep_their_order() -> None:
    with pytest.raises(PlanError, match=r"0F2 reads adapter 0 after its global batch 0"):
        check(("0F0 0F1 0B0 0B1 0F2 0F3 0B2 0B3 0S0.1 0S0.0", GOOD[1]))


def test_replicas_reduce_once_before_the_step_and_in_one_order() -> None:
    plan = even_plan(1, 2, num_replicas=2, num_batches=2)
    good = build_program(plan).to_text()

    def of(text: str) -> Program:
        return Program.from_text(text, num_stages=1, num_replicas=2)

    check_program(of(good), plan)
    with pytest.raises(PlanError, match=r"replica 0, stage 0: 0S0.0 stands before its Reduce"):
        check_program(of(good.replace("0R0.0 0S0.0", "0S0.0 0R0.0")), plan)
    first, second = good.splitlines()
    with pytest.raises(PlanError, match=r"replica 1, stage 0: 0S0.0 stands before its Reduce"):
        check_program(of("\n".join((first, second.replace("0R0.0 ", "")))), plan)


def test_a_program_for_another_plan_is_refused() -> None:
    with pytest.raises(PlanError, match="the program has num_stages=2, the plan 3; build it anew"):
        check_program(build_program(even_plan(2, 4)), even_plan(3, 4))


def test_a_deadlock_names_its_circle() -> None:
    # Stage 0 wants the gradient of 0 before it sends 1; stage 1 wants 1 before it makes that gradient.
    plan = even_plan(2, 2)
    lines = ("0F0 0B0 0F1 0B1 0S0.0", "1F0 1F1 1B0 1B1 1S0.0")
    with pytest.raises(PlanError, match="0B0 waits to start -> 1F1 waits to start -> 0B0 waits to start"):
        check(lines, plan)
    with pytest.raises(PlanError, match="deadlocks: 8 of 10 actions can never start"):
        program_graph(Program.from_text("\n".join(lines), num_stages=2))


def test_sends_that_wait_for_each_other_are_a_deadlock_too() -> None:
    # Interleaved stages send in a ring; with receives posted one action ahead they stand still, further ahead they run.
    program = build_program(even_plan(2, 4), schedule="interleaved-2")
    with pytest.raises(PlanError, match="2B0 waits to send -> 3B1 waits to send -> 2B0 waits to send"):
        require_progress(program, ahead=1)
    require_progress(program, ahead=2)


def test_a_stage_is_looked_at_only_when_the_one_it_waits_for_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    # One microbatch is under way at a time. Looking at all stages in turn takes 11 looks an action.
    program = build_program(even_plan(32, 1, num_batches=8))
    looks = 0
    awaited = deadlock._Run.awaited

    def counted(run: deadlock._Run, worker: int) -> int:
        nonlocal looks
        looks += 1
        return awaited(run, worker)

    monkeypatch.setattr(deadlock._Run, "awaited", counted)
    require_progress(program)
    assert looks < 5 * program.num_actions()


def test_a_norm_that_goes_up_can_hold_up_a_forward_that_comes_down() -> None:
    # Wide warm-up: stage 0 sends forward 5 before backward 1, stage 1 wants to hand over the norm after backward 1.
    lines = (
        "0F0 0F2 0B0 0R1.0 0B2 0R0.0 0S1.0 0S0.0",
        "1F0 1B0 1R1.0 1F2 1B2 1R0.0 1S1.0 1S0.0",
        "0F1 0F3 0F5 0B1 0R1.0 0B3 0B5 0R0.0 0S1.0 0S0.0",
        "1F1 1B1 1R1.0 1F3 1B3 1F5 1B5 1R0.0 1S1.0 1S0.0",
    )
    program = Program.from_text("\n".join(lines), num_stages=2, num_replicas=2)
    with pytest.raises(PlanError, match=r"0F5 waits to send -> 1R1.0 waits to send -> 0F5 waits to send"):
        require_progress(program)
    require_progress(program, ahead=2)


def test_a_forward_that_nobody_feeds_is_named() -> None:
    with pytest.raises(PlanError, match="stage 1 runs 1F1, but no stage runs the forward that feeds it"):
        program_graph(Program.from_text("0F0 0B0\n1F0 1B0 1F1\n", num_stages=2))


@settings(max_examples=300)
@given(
    plan=plans(max_stages=5), schedule=st.sampled_from(["1f1b-slots", "1f1b-greedy", "gpipe"]), seed=st.integers(0, 999)
)
def test_a_program_with_one_action_dropped_or_doubled_never_passes(plan: Plan, schedule: str, seed: int) -> None:
    lines = [line.split() for line in build_program(plan, schedule=schedule).to_text().splitlines()]
    random = Random(seed)
    line = random.choice(lines)
    place = random.randrange(len(line))
    if random.random() < 0.5:
        line.insert(random.randrange(len(line) + 1), line[place])
    else:
        line.pop(place)
    broken = Program.from_text("\n".join(" ".join(words) for words in lines), num_stages=plan.num_stages)
    with pytest.raises(PlanError):
        check_program(broken, plan)


@settings(max_examples=300)
@given(plan=plans(max_stages=5), seed=st.integers(0, 999))
def test_two_neighbours_swapped_pass_only_if_the_graph_still_has_an_order(plan: Plan, seed: int) -> None:
    lines = [line.split() for line in build_program(plan, schedule="1f1b-slots").to_text().splitlines()]
    random = Random(seed)
    line = random.choice(lines)
    if len(line) < 2:
        return
    place = random.randrange(len(line) - 1)
    line[place : place + 2] = line[place + 1], line[place]
    swapped = Program.from_text("\n".join(" ".join(words) for words in lines), num_stages=plan.num_stages)
    try:
        check_program(swapped, plan)
    except PlanError:
        return
    # What passes the strict check can always be run: the graph orders all of its actions.
    assert len(program_graph(swapped).order()) == swapped.num_actions()
