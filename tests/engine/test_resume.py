"""A run that is killed anywhere and resumed ends with the same bits as one that was not."""

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loraplex.engine import execute
from loraplex.engine.checkpoint import (
    CheckpointWriter,
    Restored,
    forget_unfinished,
    newest_checkpoint,
    newest_position,
)
from loraplex.engine.cut import Copy, copies, cut_points
from loraplex.engine.errors import DiskError
from loraplex.engine.loss import adapter_losses
from loraplex.engine.mailbox import Sums
from loraplex.engine.metrics import StepRecord
from loraplex.engine.output import CHECKPOINTS
from loraplex.engine.stage import Stage
from loraplex.engine.threads import run_in_threads
from loraplex.planner.build_program import build_program
from loraplex.planner.errors import PlanError
from loraplex.planner.jobs import OnNonfinite
from loraplex.planner.plan import Plan, microbatch
from loraplex.planner.position import continued, positions
from loraplex.planner.program import Program
from loraplex.planner.resume import program_after, remaining

TWO_STAGES = """\
0F0 0F1 0B0 0S0.0 0F2 0B1 0S1.0 0F3 0B2 0B3 0S0.1 0S1.1
1F0 1B0 1F1 1B1 1S0.0 1F2 1B2 1S1.0 1F3 1B3 1S0.1 1S1.1
"""


class KilledError(Exception):
    """Stands for kill -9 between two actions."""


def train(
    stages: Sequence[Stage],
    plan: Plan,
    program: Program,
    tokens: Any,
    folder: Path,
    *,
    every: int,
    restored: Restored | None = None,
    kill: tuple[int, int] | None = None,
    on_nonfinite: OnNonfinite = "stop",
) -> list[StepRecord]:
    """Run (the rest of) a Program with checkpoints; `kill` is (worker, place of the leg after which it dies)."""
    after = -1 if restored is None else restored.after
    program = program if restored is None else restored.rest_of(program)
    owners = [{"replica": stage.replica, "num_replicas": plan.num_replicas} for stage in stages]
    sums = [Sums() if restored is None else restored.sums(**owner) for owner in owners]
    writers = [
        CheckpointWriter(
            folder,
            stage=stage.layout.stage,
            num_stages=plan.num_stages,
            positions=positions(plan),
            base="a model",
            replica=stage.replica,
            num_replicas=plan.num_replicas,
        )
        for stage in stages
    ]
    cuts = cut_points(plan.num_slots(), every=every, after=after)
    due = [copies(program, plan, stage=stage.layout.stage, replica=stage.replica, cuts=cuts) for stage in stages]
    if restored is not None:
        for stage, owner in zip(stages, owners, strict=True):
            restored.put_into(stage.adapters, **owner)

    def after_leg(worker: int, place: int) -> None:
        writers[worker].copy(due[worker].get(place, ()), stages[worker].adapters, sums[worker])
        if kill == (worker, place):
            raise KilledError

    done = run_in_threads(stages, plan, program, tokens, sums=sums, on_nonfinite=on_nonfinite, after_leg=after_leg)
    return list(done.records)


def state(stages: Sequence[Stage]) -> list[dict[str, torch.Tensor]]:
    return [adapter.tensors() for stage in stages for adapter in stage.adapters]


def line(record: StepRecord) -> tuple[object, ...]:
    return (record.adapter, record.step, record.loss, record.learning_rate, record.grad_norm, record.update_norm)


@pytest.fixture
def case(
    make_stages: Any, tokens_of: Any, small_plan: Any, three_jobs: Any
) -> Callable[..., tuple[Plan, Program, Any, Callable[[], tuple[Stage, ...]]]]:
    def build(num_stages: int, schedule: str = "1f1b", num_replicas: int = 1, seed: int = 0) -> Any:
        jobs = three_jobs(num_steps=4, dropout=0.1)
        plan = small_plan(jobs, num_stages=num_stages, num_replicas=num_replicas, seed=seed)
        return plan, build_program(plan, schedule=schedule), tokens_of(jobs), lambda: make_stages(plan)

    return build


@pytest.mark.parametrize("number", range(22))
def test_resumed_from_a_random_kill_point_the_bits_are_the_same(case: Any, tmp_path: Path, number: int) -> None:
    generator = np.random.default_rng(number)
    num_stages, every = int(generator.integers(1, 5)), int(generator.integers(1, 6))
    num_replicas = 1 if number < 13 else int(generator.integers(2, 4))
    schedule = str(generator.choice(["1f1b-slots", "1f1b-greedy", "1f1b-wide", "gpipe"]))
    plan, program, tokens, fresh = case(num_stages, schedule, num_replicas, number)
    whole = fresh()
    records = train(whole, plan, program, tokens, tmp_path / "whole", every=every)
    worker = int(generator.integers(num_stages * num_replicas))
    place = int(generator.integers(len(program.workers[worker])))
    with pytest.raises(KilledError):
        train(fresh(), plan, program, tokens, tmp_path / "killed", every=every, kill=(worker, place))
    restored = newest_checkpoint(tmp_path / "killed", plan)
    if restored is not None:
        # What the simulator replays after a restart is what the engine runs.
        assert restored.rest_of(program) == program_after(program, plan, slot=restored.after)
    resumed = fresh()
    rest = train(resumed, plan, program, tokens, tmp_path / "killed", every=every, restored=restored)
    for one, other in zip(state(whole), state(resumed), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    # The steps that are taken again report what they reported in the whole run.
    done = restored.versions if restored else (0,) * len(plan.jobs)
    later = [record for record in records if record.step >= done[[job.name for job in plan.jobs].index(record.adapter)]]
    assert sorted(map(line, rest)) == sorted(map(line, later))


@pytest.mark.parametrize("place", [12, 17, 21, 26])
def test_a_resumed_run_leaves_out_the_same_samples_of_a_halted_adapter(
    case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    seen: list[tuple[int, int]] = []

    def broken(*given: Any) -> tuple[torch.Tensor, ...]:
        seen.extend((share.adapter, share.global_batch) for share in given[-1])
        return tuple(
            part * float("nan") if (share.adapter, share.global_batch) == (1, 0) else part
            for part, share in zip(adapter_losses(*given), given[-1], strict=True)
        )

    monkeypatch.setattr(execute, "adapter_losses", broken)
    plan, program, tokens, fresh = case(2)
    whole = fresh()
    train(whole, plan, program, tokens, tmp_path / "whole", every=1, on_nonfinite="quarantine")
    with pytest.raises(KilledError):
        train(fresh(), plan, program, tokens, tmp_path / "cut", every=1, kill=(1, place), on_nonfinite="quarantine")
    restored, resumed = newest_checkpoint(tmp_path / "cut", plan), fresh()
    assert restored is not None
    train(resumed, plan, program, tokens, tmp_path / "cut", every=1, restored=restored, on_nonfinite="quarantine")
    # Halted by step 0: batch 1 passes, 2 and 3 never.
    assert {batch for adapter, batch in seen if adapter == 1} == {0, 1}
    for one, other in zip(state(whole), state(resumed), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_killed_again_and_again_it_still_arrives(case: Any, tmp_path: Path) -> None:
    plan, program, tokens, fresh = case(2)
    whole = fresh()
    train(whole, plan, program, tokens, tmp_path / "whole", every=2)
    for place in (9, 12, 9, 15):
        restored = newest_checkpoint(tmp_path / "killed", plan)
        with pytest.raises(KilledError):
            train(fresh(), plan, program, tokens, tmp_path / "killed", every=2, restored=restored, kill=(1, place))
    restored = newest_checkpoint(tmp_path / "killed", plan)
    assert restored is not None
    assert restored.after > 7
    resumed = fresh()
    train(resumed, plan, program, tokens, tmp_path / "killed", every=2, restored=restored)
    for one, other in zip(state(whole), state(resumed), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("num_before", "num_after"), [(2, 4), (4, 1), (1, 3)])
@pytest.mark.parametrize("last_leg", [10, 16, 23])
def test_a_checkpoint_knows_nothing_of_stages(
    case: Any, tmp_path: Path, num_before: int, num_after: int, last_leg: int
) -> None:
    plan, program, tokens, fresh = case(num_before)
    with pytest.raises(KilledError):
        train(fresh(), plan, program, tokens, tmp_path, every=1, kill=(0, last_leg))
    restored = newest_checkpoint(tmp_path, plan)
    assert restored is not None
    other_plan, other_program, _, other_fresh = case(num_after)
    assert other_plan.microbatches == plan.microbatches
    whole, resumed = other_fresh(), other_fresh()
    train(whole, other_plan, other_program, tokens, tmp_path / "whole", every=1000)
    train(resumed, other_plan, other_program, tokens, tmp_path / "resumed", every=1000, restored=restored)
    for one, other in zip(state(whole), state(resumed), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("before", "after", "last_leg"),
    [((2, 1), (3, 1), 14), ((2, 2), (1, 1), 23), ((1, 1), (2, 2), 23), ((2, 2), (1, 3), 14)],
)
def test_what_is_left_is_planned_anew_for_other_stages_and_replicas(
    case: Any, make_stages: Any, tmp_path: Path, before: tuple[int, int], after: tuple[int, int], last_leg: int
) -> None:
    plan, program, tokens, fresh = case(before[0], num_replicas=before[1])
    whole = fresh()
    records = train(whole, plan, program, tokens, tmp_path / "whole", every=1000)
    with pytest.raises(KilledError):
        train(fresh(), plan, program, tokens, tmp_path, every=1, kill=(0, last_leg))
    slot = newest_position(tmp_path, plan)
    assert slot is not None
    other = continued(plan, slot=slot, num_stages=after[0], num_replicas=after[1])
    assert not other.verify()
    restored = newest_checkpoint(tmp_path, other)
    assert restored is not None
    resumed = make_stages(other)
    rest = train(resumed, other, build_program(other), tokens, tmp_path, every=1, restored=restored)
    expected = {(record.adapter, record.step): record.loss for record in records}
    assert {record.adapter for record in rest} == {job.name for job in plan.jobs}
    for record in rest:
        assert record.loss == pytest.approx(expected[record.adapter, record.step], abs=1e-5)
    # Nothing was lost or done twice: the weights end where they would have ended.
    for index, adapter in enumerate(whole[0].adapters):
        mine = {name: weight for stage in resumed for name, weight in stage.adapters[index].parameters.items()}
        for name, weight in adapter.parameters.items():
            torch.testing.assert_close(mine[name], weight, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("replicas", "change"),
    [
        # What a user changes whose device was full: what is done is counted in the smaller microbatches, too.
        ((1, 1), {"microbatch_tokens": 24}),
        ((2, 2), {"microbatch_tokens": 24}),
        ((2, 1), {"microbatch_tokens": 30, "num_stages": 3}),
        ((1, 1), {"microbatch_tokens": 96}),
        ((1, 1), {"schedule": "gpipe"}),
        ((1, 1), {"schedule": "1f1b-wide", "microbatch_tokens": 33}),
    ],
)
def test_what_is_left_is_planned_anew_for_other_microbatches_and_schedules(
    case: Any, make_stages: Any, tmp_path: Path, replicas: tuple[int, int], change: dict[str, Any]
) -> None:
    plan, program, tokens, fresh = case(2, num_replicas=replicas[0])
    whole = fresh()
    records = train(whole, plan, program, tokens, tmp_path / "whole", every=1000)
    with pytest.raises(KilledError):
        train(fresh(), plan, program, tokens, tmp_path, every=1, kill=(0, 23))
    slot = newest_position(tmp_path, plan)
    assert slot is not None
    other = continued(plan, slot=slot, num_replicas=replicas[1], **change)
    assert not other.verify()
    assert {name: getattr(other, name) for name in change} == change
    restored = newest_checkpoint(tmp_path, other)
    assert restored is not None
    resumed = make_stages(other)
    rest = train(resumed, other, build_program(other), tokens, tmp_path, every=1, restored=restored)
    expected = {(record.adapter, record.step): record.loss for record in records}
    for record in rest:
        assert record.loss == pytest.approx(expected[record.adapter, record.step], abs=1e-5)
    # A second cut lies behind the first, whatever slots are called now.
    assert (newest_position(tmp_path, other) or 0) > restored.after
    for index, adapter in enumerate(whole[0].adapters):
        mine = {name: weight for stage in resumed for name, weight in stage.adapters[index].parameters.items()}
        for name, weight in adapter.parameters.items():
            torch.testing.assert_close(mine[name], weight, atol=1e-5, rtol=0)


def test_another_base_model_is_refused(case: Any, tmp_path: Path) -> None:
    plan, program, tokens, fresh = case(2)
    train(fresh(), plan, program, tokens, tmp_path, every=3)
    assert newest_checkpoint(tmp_path, plan, base="a model") is not None
    for find in (newest_checkpoint, newest_position):
        with pytest.raises(PlanError, match=r"microbatch-\d+ was trained on another base_model; give that one, or "):
            find(tmp_path, plan, base="another")


def test_a_checkpoint_that_never_reached_the_disk_replaces_no_older_one(
    case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, program, tokens, fresh = case(2)
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match=r"stage-\d-of-2.safetensors could not be written \(No space left on device\)"):
        train(fresh(), plan, program, tokens, tmp_path, every=2)
    assert newest_checkpoint(tmp_path, plan) is not None
    assert not list((tmp_path / CHECKPOINTS).glob("*/.*.tmp"))


def test_what_is_left_after_a_cut() -> None:
    # Stage 0 is at the end of 0B1; (0, 0) has been stepped there, (1, 0) is whole and waits for its step.
    program = Program.from_text(TWO_STAGES, num_stages=2)
    left = remaining(program, slot=1, versions=(1, 0), pending={(1, 0)})
    assert left.to_text() == "0S1.0 0F2 0F3 0B2 0B3 0S0.1 0S1.1\n1S1.0 1F2 1B2 1F3 1B3 1S0.1 1S1.1\n"


def test_adapters_are_copied_when_they_hold_what_stage_0_has(three_jobs: Any) -> None:
    jobs = three_jobs(num_steps=2)[:2]
    held = (jobs[0].global_batches[0], jobs[1].global_batches[0], jobs[0].global_batches[1], jobs[1].global_batches[1])
    plan = Plan(jobs=jobs, num_stages=2, microbatch_tokens=200, microbatches=tuple(map(microbatch, held)))
    program = Program.from_text(TWO_STAGES, num_stages=2)
    # By the end of 0B1, stage 0 has taken step 0.0. Stage 1 copies adapter 1 after 1B1, adapter 0 after its 1S0.0.
    assert copies(program, plan, stage=0, cuts=[1]) == {
        5: (
            Copy(after=1, adapter=0, num_whole=1, completes=False),
            Copy(after=1, adapter=1, num_whole=1, completes=True),
        )
    }
    assert copies(program, plan, stage=1, cuts=[1]) == {
        4: (Copy(after=1, adapter=0, num_whole=1, completes=True),),
        3: (Copy(after=1, adapter=1, num_whole=1, completes=False),),
    }


def test_a_stage_whose_part_is_missing_makes_a_checkpoint_incomplete(case: Any, tmp_path: Path) -> None:
    plan, program, tokens, fresh = case(2)
    train(fresh(), plan, program, tokens, tmp_path, every=3)
    folders = sorted((tmp_path / CHECKPOINTS).iterdir(), key=lambda path: int(path.name.split("-")[1]))
    # The newest two are kept.
    assert len(folders) == 2
    newest = newest_checkpoint(tmp_path, plan)
    (folders[-1] / "stage-1-of-2.safetensors").unlink()
    older = newest_checkpoint(tmp_path, plan)
    assert newest is not None
    assert older is not None
    assert [f"microbatch-{found.after}" for found in (older, newest)] == [path.name for path in folders]
    shutil.rmtree(folders[0])
    assert newest_checkpoint(tmp_path, plan) is None


def test_what_a_killed_run_left_unfinished_does_not_spoil_the_checkpoints_of_other_stages(
    case: Any, tmp_path: Path
) -> None:
    plan, program, tokens, fresh = case(2)
    train(fresh(), plan, program, tokens, tmp_path, every=3)
    older, newest = sorted((tmp_path / CHECKPOINTS).iterdir(), key=lambda path: int(path.name.split("-")[1]))
    (newest / "stage-1-of-2.safetensors").unlink()
    other_plan, other_program, _, other_fresh = case(3)
    restored = newest_checkpoint(tmp_path, other_plan)
    assert restored is not None
    assert older.name == f"microbatch-{restored.after}"
    forget_unfinished(tmp_path)
    assert list((tmp_path / CHECKPOINTS).iterdir()) == [older]
    train(other_fresh(), other_plan, other_program, tokens, tmp_path, every=3, restored=restored)
    found = newest_checkpoint(tmp_path, other_plan)
    assert found is not None
    assert newest.name == f"microbatch-{found.after}"


def test_only_the_last_stage_keeps_the_books_of_evaluations(case: Any, tmp_path: Path) -> None:
    # After a resume every stage has them, as they were: with a verdict that the last one has passed on since.
    plan, _, _, fresh = case(2)
    first, last = stages = fresh()
    for stage in stages:
        stage.adapters[0].evaluated["best_loss"] = torch.tensor(2.0 + stage.layout.stage, dtype=torch.float64)
    first.adapters[0].evaluated["verdict"] = torch.tensor(1.0, dtype=torch.float64)
    due = [Copy(after=1, adapter=adapter, num_whole=0, completes=adapter == 2) for adapter in range(3)]
    for stage in (first, last):
        writer = CheckpointWriter(tmp_path, stage=stage.layout.stage, num_stages=2, positions=positions(plan))
        writer.copy(due, stage.adapters, Sums())
    restored = newest_checkpoint(tmp_path, plan)
    assert restored is not None
    books = {key: value.item() for key, value in restored.tensors.items() if "/evaluated/" in key}
    assert books == {"0/evaluated/best_loss": 3.0}


def test_a_checkpoint_of_another_plan_is_refused(case: Any, small_plan: Any, three_jobs: Any, tmp_path: Path) -> None:
    plan, program, tokens, fresh = case(1)
    train(fresh(), plan, program, tokens, tmp_path, every=5)
    with pytest.raises(PlanError, match=r"microbatch-\d+ is of another plan; give that plan, or train without"):
        newest_checkpoint(tmp_path, small_plan(three_jobs(num_steps=3), num_stages=1))


def test_a_broken_checkpoint_is_named(case: Any, tmp_path: Path) -> None:
    plan, program, tokens, fresh = case(1)
    train(fresh(), plan, program, tokens, tmp_path, every=5)
    for path in (tmp_path / CHECKPOINTS).glob("*/*.safetensors"):
        path.write_bytes(b"no safetensors")
    with pytest.raises(
        PlanError, match=r"stage-0-of-1.safetensors cannot be read .*; remove .*microbatch-\d+ to resume"
    ):
        newest_checkpoint(tmp_path, plan)
