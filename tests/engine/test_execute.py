"""The executor does what the Program says, in its order, and notices when the Program is wrong."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from loraplex.engine import execute
from loraplex.engine.errors import EngineError
from loraplex.engine.learning_rate import learning_rate_at
from loraplex.engine.loss import adapter_losses
from loraplex.engine.threads import run_in_threads
from loraplex.planner.build_program import build_program
from loraplex.planner.errors import PlanError
from loraplex.planner.plan import Plan, microbatch
from loraplex.planner.program import Program

SCHEDULES = ("1f1b", "1f1b-slots", "1f1b-greedy", "1f1b-wide", "gpipe")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_the_executed_order_is_the_program_span_for_span(
    make_stages: Any, tokens_of: Any, small_plan: Any, three_jobs: Any, num_stages: int, schedule: str
) -> None:
    jobs = three_jobs(num_steps=3)
    plan = small_plan(jobs, num_stages=num_stages)
    program = build_program(plan, schedule=schedule)
    run = run_in_threads(make_stages(plan), plan, program, tokens_of(jobs))
    for stage, recorder in enumerate(run.recorders):
        spans = [span for span in recorder.spans(origin_ns=0) if span.kind == "compute"]
        words = [action.text(stage=stage, num_stages=num_stages) for action in program.actions(stage=stage)]
        assert [span.action for span in spans] == words
        assert all(span.start_ms <= span.end_ms for span in spans)
        assert all(one.end_ms <= later.start_ms for one, later in pairwise(spans))


def test_replicas_execute_their_programs_and_end_with_equal_weights(
    make_stages: Any, tokens_of: Any, small_plan: Any, three_jobs: Any
) -> None:
    jobs = three_jobs(num_steps=3)
    plan = small_plan(jobs, num_stages=2, num_replicas=2)
    program = build_program(plan)
    stages = make_stages(plan)
    run = run_in_threads(stages, plan, program, tokens_of(jobs))
    for worker, recorder in enumerate(run.recorders):
        replica, stage = divmod(worker, 2)
        words = [action.text(stage=stage, num_stages=2) for action in program.actions(stage=stage, replica=replica)]
        assert [row[1] for row in recorder.rows if row[0] == "compute"] == words
    for stage in range(2):
        for one, other in zip(stages[stage].adapters, stages[2 + stage].adapters, strict=True):
            for name, weight in one.parameters.items():
                assert torch.equal(weight, other.parameters[name])


def test_every_wait_and_every_transfer_is_recorded(
    make_stages: Any, tokens_of: Any, small_plan: Any, three_jobs: Any
) -> None:
    jobs = three_jobs(num_steps=2)
    plan: Plan = small_plan(jobs, num_stages=2)
    run = run_in_threads(make_stages(plan), plan, build_program(plan), tokens_of(jobs))
    count = len(plan.microbatches)
    for stage, (waited, sent) in enumerate([("B", "F"), ("F", "B")]):
        rows = run.recorders[stage].rows
        # What rides alone at the end, the last norms, comes on top.
        waits = [row for row in rows if row[0] == "wait" and row[2] >= 0]
        transfers = [row for row in rows if row[0] == "transfer" and row[2] >= 0]
        assert [row[2] for row in waits] == [row[2] for row in transfers] == list(range(count))
        assert {row[1][1] for row in transfers} == {sent}
        # A Step may be the one that waits for its forward's message.
        assert {row[1][1] for row in waits} <= {waited, "S"}
        payload = [batch.num_tokens() * 32 * 4 for batch in plan.microbatches]
        assert all(row[5] >= size for row, size in zip(transfers, payload, strict=True))


def test_metrics_of_a_step(make_stages: Any, tokens_of: Any, small_plan: Any, three_jobs: Any) -> None:
    jobs = three_jobs(num_steps=4)
    plan = small_plan(jobs, num_stages=2)
    run = run_in_threads(make_stages(plan), plan, build_program(plan), tokens_of(jobs))
    for job in jobs:
        own = [record for record in run.records if record.adapter == job.name]
        assert [record.step for record in own] == [0, 1, 2, 3]
        assert [record.tokens for record in own] == [
            sum(sample.num_tokens for sample in batch) for batch in job.global_batches
        ]
        assert [record.learning_rate for record in own] == [
            learning_rate_at(step, settings=job.optimizer, num_steps=4) for step in range(4)
        ]
        assert all(record.grad_norm > 0 and record.loss > 0 and record.ms > 0 for record in own)
        # No change where the rate is 0, which warmup begins with.
        assert [record.update_norm > 0 for record in own] == [record.learning_rate > 0 for record in own]


def swapped(program: Program, stage: int, word: str, other: str) -> Program:
    """The Program with two words of one stage in each other's place."""
    lines = [line.split() for line in program.to_text().splitlines()]
    first, second = lines[stage].index(word), lines[stage].index(other)
    lines[stage][first], lines[stage][second] = other, word
    text = "\n".join(" ".join(line) for line in lines)
    return Program.from_text(text, num_stages=program.num_stages)


def two_steps_of_one_job(three_jobs: Any, *, num_stages: int) -> Plan:
    job = three_jobs(num_steps=2)[0]
    microbatches = tuple(microbatch(batch) for batch in job.global_batches)
    return Plan(jobs=(job,), num_stages=num_stages, microbatch_tokens=200, microbatches=microbatches)


def test_a_forward_before_its_step_is_noticed(make_stages: Any, tokens_of: Any, three_jobs: Any) -> None:
    plan = two_steps_of_one_job(three_jobs, num_stages=1)
    program = build_program(plan)
    assert program.to_text() == "0F0 0B0 0S0.0 0F1 0B1 0S0.1\n"
    wrong = swapped(program, 0, "0S0.0", "0F1")
    with pytest.raises(
        EngineError, match=r"pp_rank 0 at 0F1: adapter 'job0' has taken 0 steps where 1 are due; the Program breaks"
    ):
        run_in_threads(make_stages(plan), plan, wrong, tokens_of(plan.jobs))


def test_a_loss_that_is_no_number_stops_the_run_and_names_adapter_and_step(
    make_stages: Any, tokens_of: Any, small_plan: Any, three_jobs: Any
) -> None:
    jobs = three_jobs(num_steps=2)
    plan = small_plan(jobs, num_stages=2)
    stages = make_stages(plan)
    for weight in stages[0].adapters[1].parameters.values():
        weight.data.fill_(float("nan"))
    with pytest.raises(EngineError, match=r"adapter 'job1', step 0: the loss is nan; lower its learning_rate or look"):
        run_in_threads(stages, plan, build_program(plan), tokens_of(jobs))


def test_a_gradient_that_is_no_number_stops_the_run_before_its_step(
    make_stages: Any, tokens_of: Any, small_plan: Any, three_jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = three_jobs(num_steps=2)
    plan = small_plan(jobs, num_stages=2)
    stages = make_stages(plan)

    def bottomless(*given: Any) -> tuple[torch.Tensor, ...]:
        # The square root of 0 is a number, its slope is not.
        return tuple((part - part.detach()).sqrt() for part in adapter_losses(*given))

    monkeypatch.setattr(execute, "adapter_losses", bottomless)
    fresh = make_stages(plan)
    with pytest.raises(EngineError, match=r"adapter 'job\d', step 0: the gradient norm is nan; lower"):
        run_in_threads(stages, plan, build_program(plan), tokens_of(jobs))
    for adapter, same in zip(stages[1].adapters, fresh[1].adapters, strict=True):
        assert all(torch.equal(weight, same.parameters[name]) for name, weight in adapter.parameters.items())


def test_what_breaks_in_one_stage_ends_the_others_and_is_what_is_told(
    make_stages: Any, tokens_of: Any, small_plan: Any, three_jobs: Any
) -> None:
    jobs = three_jobs(num_steps=2)
    plan = small_plan(jobs, num_stages=4)

    def fail(worker: int, place: int) -> None:
        if (worker, place) == (2, 3):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run_in_threads(make_stages(plan), plan, build_program(plan), tokens_of(jobs), after_leg=fail)


@pytest.mark.parametrize(
    ("text", "message"), [("0I0 0W0\n", "does not split backwards"), ("0F0 2F0\n1F0 3F0\n", "2 model chunks")]
)
def test_schedules_that_are_not_run_are_refused_by_name(
    make_stages: Any, tokens_of: Any, three_jobs: Any, text: str, message: str
) -> None:
    num_stages = text.count("\n")
    plan = two_steps_of_one_job(three_jobs, num_stages=num_stages)
    program = replace(Program.from_text(text, num_stages=num_stages), schedule="odd")
    with pytest.raises(PlanError, match=rf"schedule 'odd' .*{message}"):
        run_in_threads(make_stages(plan), plan, program, tokens_of(plan.jobs))
