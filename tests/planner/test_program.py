"""Programs as text, and back."""

import pytest
from hypothesis import given

from loraplex.planner.build_program import build_program, schedule_names
from loraplex.planner.errors import PlanError
from loraplex.planner.plan import Plan
from loraplex.planner.program import Action, ActionColumns, ActionKind, Program
from loraplex.tests.random_plans import even_plan, plans


@pytest.mark.parametrize("schedule", schedule_names())
@given(plan=plans(max_stages=4, max_replicas=2))
def test_text_comes_back_as_the_same_program(schedule: str, plan: Plan) -> None:
    program = build_program(plan, schedule=schedule)
    again = Program.from_text(
        program.to_text(),
        num_stages=program.num_stages,
        num_replicas=program.num_replicas,
        schedule=program.schedule,
    )
    assert again.workers == program.workers
    assert (again.num_stages, again.num_replicas) == (program.num_stages, program.num_replicas)


def test_actions_are_columns_and_columns_are_actions() -> None:
    actions = [
        Action(kind=ActionKind.FORWARD, microbatch=3, chunk=1),
        Action(kind=ActionKind.STEP, adapter=2, global_batch=5),
    ]
    assert list(ActionColumns.of(actions)) == actions
    assert [action.text(stage=1, num_stages=4) for action in actions] == ["5F3", "1S2.5"]
    assert ActionColumns.of(actions) != ActionColumns.of(actions[:1])
    assert len(ActionColumns.of([])) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0F0 0X1\n1F0\n", "line 1: '0X1' is no action"),
        ("0F0\n0F0\n", "line 2: '0F0' is an action of stage 0; move it to its line"),
        ("0F0\n", "has 1 line; it needs one for each of 1 replica x 2 stages"),
        ("0F0\n1S2\n", "line 2: '1S2' is no action"),
    ],
)
def test_bad_text_is_named_by_line_and_word(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Program.from_text(text, num_stages=2)


def test_an_unknown_schedule_is_named_with_the_known_ones() -> None:
    with pytest.raises(PlanError, match="schedule '2f2b' is unknown; choose one of 1f1b, 1f1b-slots"):
        build_program(even_plan(2, 2), schedule="2f2b")
