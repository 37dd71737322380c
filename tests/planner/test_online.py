"""Jobs come and go while a plan runs."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex.planner.errors import PlanError
from loraplex.planner.make_plan import make_plan
from loraplex.planner.online import replan
from loraplex.planner.plan import Plan
from loraplex.planner.plan_report import plan_figures
from loraplex.tests.random_jobs import Request, jobs_of, requests

JOBS = jobs_of([[[9, 9], [9]], [[6], [6], [6]], [[3]]])


def small_plan() -> Plan:
    return make_plan(JOBS, num_stages=2, microbatch_tokens=10)


def contents(plan: Plan) -> list[list[tuple[str, int]]]:
    """(adapter name, sample index) of each microbatch: numbers change, names do not."""
    return [[(plan.jobs[sample.adapter].name, sample.index) for sample in row.samples] for row in plan.microbatches]


def test_a_job_is_added() -> None:
    plan = small_plan()
    (late,) = jobs_of([[[4, 4]]])
    longer = replan(plan, num_entered=3, add=[replace(late, name="late")], data_fingerprint="cd")
    assert longer.verify() == ()
    assert contents(longer)[:3] == contents(plan)[:3]
    assert [job.name for job in longer.jobs] == ["a0", "a1", "a2", "late"]
    assert (longer.strategy, longer.data_fingerprint) == ("online", "cd")


def test_a_withdrawn_job_finishes_the_batch_it_has_begun() -> None:
    plan = small_plan()
    begun = contents(plan).index([("a0", 0)]) + 1
    shorter = replan(plan, num_entered=begun, withdraw=["a0"])
    assert shorter.verify() == ()
    assert shorter.jobs[0].global_batches == JOBS[0].global_batches[:1]
    assert plan_figures(shorter).slots < plan_figures(plan).slots


def test_a_withdrawn_job_that_has_not_begun_is_left_out() -> None:
    shorter = replan(small_plan(), num_entered=0, withdraw=["a0", "a2"])
    assert contents(shorter) == [[("a1", 0)], [("a1", 1)], [("a1", 2)]]
    assert [sample.adapter for row in shorter.microbatches for sample in row.samples] == [0, 0, 0]


def test_when_everything_has_entered_nothing_is_left_to_plan() -> None:
    plan = small_plan()
    same = replan(plan, num_entered=plan.num_slots())
    assert contents(same) == contents(plan)
    assert same.verify() == ()


@pytest.mark.parametrize(
    ("num_entered", "withdraw", "message"),
    [
        (-1, [], "num_entered=-1 must lie between 0 and the plan's"),
        (99, [], "num_entered=99"),
        (0, ["ghost"], r"withdraw=\['ghost'\]: no adapter of the plan has that name; it has a0, a1, a2"),
        (0, ["a0", "a1", "a2"], "every adapter is withdrawn and none has begun"),
    ],
)
def test_what_cannot_be(num_entered: int, withdraw: list[str], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        replan(small_plan(), num_entered=num_entered, withdraw=withdraw)


@settings(max_examples=120)
@given(request=requests(max_replicas=2), data=st.data())
def test_random_changes_keep_every_rule(request: Request, data: st.DataObject) -> None:
    plan = make_plan(
        request.jobs,
        num_stages=request.num_stages,
        microbatch_tokens=request.microbatch_tokens,
        num_replicas=request.num_replicas,
        pad_multiple=request.pad_multiple,
        strategy="stream",
    )
    num_entered = data.draw(st.integers(0, plan.num_slots()))
    withdraw = data.draw(st.sets(st.sampled_from([job.name for job in plan.jobs]), max_size=len(plan.jobs) - 1))
    add = [replace(job, name=f"new {job.name}") for job in request.jobs[: data.draw(st.integers(0, 2))]]
    changed = replan(plan, num_entered=num_entered, add=add, withdraw=sorted(withdraw))
    assert changed.verify() == ()
    entered = num_entered * plan.num_replicas
    assert contents(changed)[:entered] == contents(plan)[:entered]
    assert changed == replan(plan, num_entered=num_entered, add=add, withdraw=sorted(withdraw))
    if not add:
        assert plan_figures(changed).slots <= plan_figures(plan).slots
