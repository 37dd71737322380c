"""What is left of a Program after a checkpoint."""

from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex.planner.build_program import build_program
from loraplex.planner.graph import program_graph
from loraplex.planner.plan import Plan
from loraplex.planner.program import ActionKind
from loraplex.planner.resume import program_after
from loraplex.tests.random_plans import even_plan, plans


def test_later_microbatches_run_anew_and_steps_that_were_still_to_come_remain() -> None:
    plan = even_plan(2, 2, num_batches=2)
    program = build_program(plan)
    assert program.to_text().splitlines() == [
        "0F0 0F1 0B0 0B1 0S0.0 0F2 0F3 0B2 0B3 0S0.1",
        "1F0 1B0 1F1 1B1 1S0.0 1F2 1B2 1F3 1B3 1S0.1",
    ]
    assert program_after(program, plan, slot=1).to_text().splitlines() == [
        "0S0.0 0F2 0F3 0B2 0B3 0S0.1",
        "1S0.0 1F2 1B2 1F3 1B3 1S0.1",
    ]
    assert program_after(program, plan, slot=2).to_text().splitlines() == ["0F3 0B3 0S0.1", "1F3 1B3 1S0.1"]
    assert program_after(program, plan, slot=-1) == program


@settings(max_examples=200)
@given(
    plan=plans(max_stages=5, max_replicas=2),
    schedule=st.sampled_from(["1f1b-slots", "1f1b-greedy", "gpipe", "interleaved-2", "zb-h1"]),
    share=st.floats(0, 1),
)
def test_whatever_is_left_can_run(plan: Plan, schedule: str, share: float) -> None:
    program = build_program(plan, schedule=schedule)
    rest = program_after(program, plan, slot=round(share * plan.num_slots()) - 1)
    assert len(program_graph(rest).order()) == rest.num_actions()
    # The cut is one: no stage has taken a step that another has not.
    steps = [{(a.adapter, a.global_batch) for a in worker if a.kind is ActionKind.STEP} for worker in rest.workers]
    assert all(own == steps[0] for own in steps)
