"""Validation during training: what is evaluated when, what follows from it, and that nothing else changes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loraplex.engine.evaluation_records import EvaluationRecord, EvaluationWriter, read_evaluations
from loraplex.engine.evaluations import Evaluations, load_best
from loraplex.engine.execute import Executor
from loraplex.engine.interleave import interleave
from loraplex.engine.itinerary import itinerary
from loraplex.engine.metrics import StepRecord
from loraplex.engine.packer import Packer
from loraplex.engine.recorder import Recorder
from loraplex.engine.rendezvous import RendezvousTransport, Switchboard
from loraplex.engine.stage import Stage
from loraplex.engine.threads import run_in_threads
from loraplex.engine.validate import Validation
from loraplex.planner.build_program import build_program
from loraplex.planner.jobs import EvaluationSettings
from loraplex.planner.plan import Plan
from loraplex.planner.program import Program
from loraplex.tests.engine.kept_out import KeptOut

NONE = EvaluationSettings()


def evaluated(
    stages: Sequence[Stage], plan: Plan, program: Program, tokens: Any, settings: Sequence[EvaluationSettings]
) -> tuple[list[EvaluationRecord], list[StepRecord]]:
    """Run a Program with evaluations, a thread a worker, and go back to the best weights at the end."""
    import threading

    validation = Validation.of(plan, KeptOut())
    assert validation is not None
    looks = interleave(program, plan, held_out=validation.held_out(), settings=settings)
    board = Switchboard(len(stages), timeout_s=30)
    found: list[EvaluationRecord] = []
    steps: list[StepRecord] = []
    errors: list[BaseException] = []

    def work(worker: int) -> None:
        stage, transport = stages[worker], RendezvousTransport(board, worker)
        is_last = stage.layout.is_last
        hear = found.append if is_last and stage.replica == 0 else None
        evaluations = Evaluations(validation.packer(stage.device), looks.by_microbatch, settings, hear=hear)
        try:
            Executor(
                stage,
                looks.plan,
                Packer(plan.jobs, tokens),
                transport,
                recorder=Recorder(stage=stage.layout.stage),
                on_step=steps.append if is_last and stage.replica == 0 else None,
                evaluations=evaluations if stage.replica == 0 else None,
            ).run(itinerary(looks.program, looks.plan, stage=stage.layout.stage, replica=stage.replica))
            load_best(
                stage.adapters,
                settings,
                lambda verdict: transport.host.reduce(verdict, workers=range(len(stages))),
                evaluations=evaluations if stage.replica == 0 else None,
                is_last=is_last,
            )
        except BaseException as error:
            errors.append(error)
            board.leave(worker, str(error))

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(len(stages))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found, steps


def weights(stages: Sequence[Stage], adapter: int) -> dict[str, torch.Tensor]:
    return {
        name: weight.detach().clone() for stage in stages for name, weight in stage.adapters[adapter].parameters.items()
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def validation_loss(stages: Sequence[Stage], plan: Plan, adapter: int) -> float:
    """By the forward-only run that stands for itself."""
    import threading

    validation = Validation.of(plan, KeptOut())
    assert validation is not None
    board, found = Switchboard(len(stages), timeout_s=30), {}

    def work(worker: int) -> None:
        found[worker] = validation.losses(stages[worker], RendezvousTransport(board, worker))

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(len(stages))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found[len(stages) - 1][plan.jobs[adapter].name]


def test_evaluations_stand_behind_their_steps(three_jobs: Any, small_plan: Any) -> None:
    jobs = three_jobs(num_steps=2)
    plan = small_plan(jobs[:1], num_stages=2, microbatch_tokens=200)
    program = build_program(plan)
    assert program.to_text() == "0F0 0B0 0S0.0 0F1 0B1 0S0.1\n1F0 1B0 1S0.0 1F1 1B1 1S0.1\n"
    held_out = [(plan.microbatches[0], plan.microbatches[0])]
    looks = interleave(program, plan, held_out=held_out, settings=[EvaluationSettings(eval_steps=1)])
    assert looks.program.to_text() == (
        "0F0 0B0 0S0.0 0E2 0E3 0F1 0B1 0S0.1 0E4 0E5\n1F0 1B0 1S0.0 1E2 1E3 1F1 1B1 1S0.1 1E4 1E5\n"
    )
    assert {place: (one.num_steps, one.last_microbatch) for place, one in looks.by_microbatch.items()} == {
        2: (1, 3), 3: (1, 3), 4: (2, 5), 5: (2, 5),
    }  # fmt: skip
    none = interleave(program, plan, held_out=held_out, settings=[NONE])
    assert (none.program, none.by_microbatch) == (program, {})


@pytest.mark.parametrize(
    ("num_stages", "num_replicas", "schedule"),
    [
        (1, 1, "1f1b"),
        (3, 1, "1f1b-slots"),
        (4, 1, "1f1b-greedy"),
        (4, 1, "1f1b-wide"),
        (2, 1, "gpipe"),
        (2, 2, "1f1b"),
        (3, 2, "1f1b"),
    ],
)
def test_training_keeps_its_bits_and_losses_are_those_of_the_weights_at_that_step(
    make_stages: Any,
    tokens_of: Any,
    small_plan: Any,
    three_jobs: Any,
    num_stages: int,
    num_replicas: int,
    schedule: str,
) -> None:
    jobs = three_jobs(num_steps=5, dropout=0.1)
    plan = small_plan(jobs, num_stages=num_stages, num_replicas=num_replicas)
    program = build_program(plan, schedule=schedule)
    plain, stages = make_stages(plan), make_stages(plan)
    run_in_threads(plain, plan, program, tokens_of(jobs))
    settings = [EvaluationSettings(eval_steps=2), NONE, EvaluationSettings(eval_steps=5)]
    found, steps = evaluated(stages, plan, program, tokens_of(jobs), settings)
    for adapter in range(3):
        assert same(weights(plain, adapter), weights(stages, adapter))
    assert len(steps) == 15
    assert [(one.adapter, one.step) for one in found if one.adapter == "job0"] == [("job0", 2), ("job0", 4)]
    (last,) = (one for one in found if one.adapter == "job2")
    assert last.step == 5
    assert last.loss == pytest.approx(validation_loss(plain[:num_stages], plan, 2), abs=1e-6)


@pytest.mark.parametrize(("num_stages", "num_replicas"), [(1, 1), (3, 1), (2, 2), (1, 3)])
def test_an_adapter_stops_early_and_goes_back_to_its_best(
    make_stages: Any, tokens_of: Any, small_plan: Any, three_jobs: Any, num_stages: int, num_replicas: int
) -> None:
    # Random texts teach nothing about other random texts: at a high rate the validation loss only rises.
    jobs = three_jobs(num_steps=8)
    wild = replace(jobs[0], optimizer=replace(jobs[0].optimizer, learning_rate=5e-2))
    jobs = (wild, *jobs[1:])
    plan = small_plan(jobs, num_stages=num_stages, num_replicas=num_replicas)
    settings = [
        EvaluationSettings(eval_steps=1, early_stopping_patience=2, load_best_model_at_end=True), NONE, NONE,
    ]  # fmt: skip
    stages = make_stages(plan)
    found, steps = evaluated(stages, plan, build_program(plan), tokens_of(jobs), settings)
    own = [one for one in found if one.adapter == "job0"]
    best = min(own, key=lambda one: one.loss)
    assert [one.best for one in own] == [
        one.loss < min((earlier.loss for earlier in own[:place]), default=np.inf) for place, one in enumerate(own)
    ]
    # Two looks without a lower loss, and the step after them is left out, as are all later ones.
    states = [(record.step, record.state) for record in steps if record.adapter == "job0"]
    assert states == [*((step, "taken") for step in range(best.step + 2)), (best.step + 2, "stopped")]
    assert best.step + 2 < 8
    # The first replica goes back, whose weights are exported.
    assert validation_loss(stages[:num_stages], plan, 0) == pytest.approx(best.loss, abs=1e-6)
    # What came to it too late was evaluated all the same; then its weights are no news any more.
    assert [one.step for one in own] == list(range(1, best.step + 4))
    # The others notice nothing.
    assert [record.state for record in steps if record.adapter != "job0"] == ["taken"] * 16


def test_the_best_may_be_the_last(make_stages: Any, tokens_of: Any, small_plan: Any, three_jobs: Any) -> None:
    jobs = three_jobs(num_steps=3)
    plan = small_plan(jobs, num_stages=2)
    settings = [EvaluationSettings(eval_steps=3, load_best_model_at_end=True), NONE, NONE]
    plain, stages = make_stages(plan), make_stages(plan)
    run_in_threads(plain, plan, build_program(plan), tokens_of(jobs))
    (only,), _ = evaluated(stages, plan, build_program(plan), tokens_of(jobs), settings)
    assert (only.step, only.best) == (3, True)
    assert same(weights(plain, 0), weights(stages, 0))


def test_a_quarantined_adapter_without_one_good_look_ends_at_the_weights_before_its_absurd_step(
    make_stages: Any, tokens_of: Any, small_plan: Any, three_jobs: Any
) -> None:
    jobs = three_jobs(num_steps=4)
    wild = replace(jobs[0], optimizer=replace(jobs[0].optimizer, learning_rate=1e30, warmup_ratio=0.0))
    jobs = (wild, *jobs[1:])
    plan = small_plan(jobs, num_stages=2)
    settings = [EvaluationSettings(eval_steps=1, load_best_model_at_end=True), NONE, NONE]
    stages = make_stages(plan)
    start = weights(stages, 0)
    found, steps = evaluated(stages, plan, build_program(plan), tokens_of(jobs), settings)
    assert [record.state for record in steps if record.adapter == wild.name] == ["taken", "quarantined"]
    assert not any(one.best for one in found)
    assert same(weights(stages, 0), start)


@dataclass(slots=True)
class Elsewhere:
    """As load_best knows an adapter, on a device that is not the host."""

    alive: torch.Tensor = field(default_factory=lambda: torch.ones((), dtype=torch.bool, device="meta"))
    version: int = 3
    kept: list[torch.Tensor] = field(default_factory=list)

    def keep_best(self, improved: torch.Tensor) -> None:
        self.kept.append(improved)

    def load_best(self) -> None: ...


def test_the_last_verdict_is_shared_on_the_host_and_heard_on_the_device(small_plan: Any, three_jobs: Any) -> None:
    # Over NCCL no communicator joins the stages.
    validation = Validation.of(small_plan(three_jobs(num_steps=3), num_stages=2), KeptOut())
    assert validation is not None
    settings = [EvaluationSettings(eval_steps=3, load_best_model_at_end=True)]
    evaluations = Evaluations(validation.packer(torch.device("cpu")), {}, settings)
    adapter = Elsewhere()
    shared: list[torch.Tensor] = []
    load_best([adapter], settings, shared.append, evaluations=evaluations, is_last=False)  # type: ignore[list-item]
    assert [verdict.device.type for verdict in shared] == ["cpu"]
    assert [improved.device.type for improved in adapter.kept] == ["meta"]


def test_records_are_cut_back_on_resume(tmp_path: Path) -> None:
    writer = EvaluationWriter(tmp_path, steps_done={"one": 0})
    written = [
        EvaluationRecord(adapter="one", step=2, loss=1 / 3, best=True),
        EvaluationRecord(adapter="one", step=4, loss=float("nan"), best=False),
        EvaluationRecord(adapter="one", step=6, loss=0.25, best=True),
    ]
    for record in written:
        writer.write(record)
    path = tmp_path / "evaluations-one.jsonl"
    assert [repr(record) for record in read_evaluations(path)] == [repr(record) for record in written]
    EvaluationWriter(tmp_path, steps_done={"one": 4})
    assert [record.step for record in read_evaluations(path)] == [2, 4]
    EvaluationWriter(tmp_path, steps_done={"one": 1})
    assert not path.exists()
