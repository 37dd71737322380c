"""NaN in one adapter: it keeps its last good weights, and the others keep their bits."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from loraplex.engine import execute
from loraplex.engine.batch import PackedBatch
from loraplex.engine.loss import adapter_losses
from loraplex.engine.metrics import StepRecord, steps_kept
from loraplex.engine.packer import Packer
from loraplex.engine.stage import Stage
from loraplex.engine.threads import run_in_threads
from loraplex.planner.build_program import build_program
from loraplex.planner.jobs import Job, OnNonfinite
from loraplex.planner.plan import Microbatch, Plan

BAD, BAD_STEP = 1, 2
State = list[dict[str, torch.Tensor]]


def state(stages: Sequence[Stage], adapter: int) -> State:
    return [stage.adapters[adapter].tensors() for stage in stages]


def same(one: State, other: State) -> bool:
    return all(
        left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
        for left, right in zip(one, other, strict=True)
    )


def run(
    stages: Sequence[Stage], plan: Plan, tokens: Any, *, mode: OnNonfinite, force: bool = False
) -> tuple[list[StepRecord], dict[int, dict[str, torch.Tensor]]]:
    """The records, and by worker the state of the bad adapter right before its bad step; `force` halts it there."""
    before: dict[int, dict[str, torch.Tensor]] = {}

    def watch(worker: int, place: int) -> None:
        adapter = stages[worker].adapters[BAD]
        if adapter.version == BAD_STEP and worker not in before:
            before[worker] = adapter.tensors()
            if force:
                adapter.alive.fill_(False)

    done = run_in_threads(stages, plan, build_program(plan), tokens, on_nonfinite=mode, after_leg=watch)
    return list(done.records), before


def kept(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a quarantined adapter must keep."""
    return {key: value for key, value in tensors.items() if key.startswith(("weight/", "optimizer/"))}


def lines(records: Sequence[StepRecord], job: Job) -> list[tuple[int, str]]:
    return [(record.step, record.state) for record in records if record.adapter == job.name]


def broken_loss(*given: Any) -> tuple[torch.Tensor, ...]:
    """Loss and gradient of one adapter's step are NaN."""
    return tuple(
        part * float("nan") if (share.adapter, share.global_batch) == (BAD, BAD_STEP) else part
        for part, share in zip(adapter_losses(*given), given[-1], strict=True)
    )


def lost_loss(*given: Any) -> tuple[torch.Tensor, ...]:
    """The loss is infinite, its gradient finite."""
    return tuple(
        part + float("inf") if (share.adapter, share.global_batch) == (BAD, BAD_STEP) else part
        for part, share in zip(adapter_losses(*given), given[-1], strict=True)
    )


def endless_gradient(*given: Any) -> tuple[torch.Tensor, ...]:
    """The loss is finite, its gradient not."""
    return tuple(
        part + (part - part.detach()).sqrt() if (share.adapter, share.global_batch) == (BAD, BAD_STEP) else part
        for part, share in zip(adapter_losses(*given), given[-1], strict=True)
    )


@pytest.mark.parametrize("losses", [broken_loss, lost_loss, endless_gradient])
@pytest.mark.parametrize(("num_stages", "num_replicas"), [(1, 1), (3, 1), (2, 2)])
def test_the_others_end_with_the_same_bits_as_if_it_had_been_halted_from_the_same_step(
    make_stages: Any,
    tokens_of: Any,
    small_plan: Any,
    three_jobs: Any,
    monkeypatch: pytest.MonkeyPatch,
    losses: Callable[..., tuple[torch.Tensor, ...]],
    num_stages: int,
    num_replicas: int,
) -> None:
    jobs = three_jobs(num_steps=5, dropout=0.1)
    plan = small_plan(jobs, num_stages=num_stages, num_replicas=num_replicas)
    forced = make_stages(plan)
    run(forced, plan, tokens_of(jobs), mode="quarantine", force=True)
    monkeypatch.setattr(execute, "adapter_losses", losses)
    stages = make_stages(plan)
    records, before = run(stages, plan, tokens_of(jobs), mode="quarantine")
    assert lines(records, jobs[BAD]) == [(0, "taken"), (1, "taken"), (2, "quarantined")]
    for adapter in (0, 2):
        assert lines(records, jobs[adapter]) == [(step, "taken") for step in range(5)]
        assert same(state(stages, adapter), state(forced, adapter))
    for worker, stage in enumerate(stages):
        mine = stage.adapters[BAD]
        assert (mine.alive.item(), mine.version) == (False, 5)
        assert same([kept(mine.tensors())], [kept(before[worker])])


@pytest.mark.parametrize(("num_stages", "num_replicas"), [(1, 1), (3, 1), (2, 2)])
def test_samples_of_a_halted_adapter_are_left_out_from_the_next_batch_but_one(
    make_stages: Any,
    tokens_of: Any,
    small_plan: Any,
    three_jobs: Any,
    monkeypatch: pytest.MonkeyPatch,
    num_stages: int,
    num_replicas: int,
) -> None:
    passed: list[tuple[int, int]] = []
    pack = Packer.pack

    def note(packer: Packer, microbatch: Microbatch) -> PackedBatch:
        passed.extend((sample.adapter, sample.index) for sample in microbatch.samples)
        return pack(packer, microbatch)

    long = three_jobs(num_steps=7)
    # Behind the others' last batch it is alone in its microbatches, and nothing is left of them.
    jobs = tuple(job if job is long[BAD] else replace(job, global_batches=job.global_batches[:5]) for job in long)
    plan = small_plan(jobs, num_stages=num_stages, num_replicas=num_replicas)
    monkeypatch.setattr(execute, "adapter_losses", broken_loss)
    monkeypatch.setattr(Packer, "pack", note)
    records, _ = run(make_stages(plan), plan, tokens_of(jobs), mode="quarantine")
    due = [
        (sample.adapter, sample.index)
        for job in jobs
        for batch in job.global_batches
        for sample in batch
        if sample.adapter != BAD or sample.global_batch <= BAD_STEP + 1
    ]
    # On every stage, of all replicas together.
    assert sorted(passed) == sorted(due * num_stages)
    assert lines(records, jobs[BAD])[-1] == (BAD_STEP, "quarantined")
    assert [lines(records, job)[-1] for job in (jobs[0], jobs[2])] == [(4, "taken")] * 2


@pytest.mark.parametrize(
    ("rate", "states"),
    [
        # The last step at this rate whose weights gave a loss and a gradient is the first.
        (1e5, ["taken", "taken", "quarantined"]),
        (1e8, ["taken", "quarantined"]),
        (1e30, ["taken", "quarantined"]),
        # The step itself would leave no numbers.
        (1e39, ["quarantined"]),
    ],
)
def test_an_absurd_learning_rate_ends_at_the_weights_of_the_last_good_step(
    make_stages: Any, tokens_of: Any, small_plan: Any, three_jobs: Any, rate: float, states: list[str]
) -> None:
    # In the third batch it is halted already, but still there: the others' products are as large as ever.
    sane = three_jobs(num_steps=3)
    wild = replace(sane[BAD], optimizer=replace(sane[BAD].optimizer, learning_rate=rate, warmup_ratio=0.0))
    jobs = (sane[0], wild, sane[2])
    plan, sane_plan = small_plan(jobs, num_stages=2), small_plan(sane, num_stages=2)
    stages, quiet = make_stages(plan), make_stages(sane_plan)
    good = max(0, len(states) - 2)
    at_good: dict[int, dict[str, torch.Tensor]] = {}

    def watch(worker: int, place: int) -> None:
        adapter = stages[worker].adapters[BAD]
        if adapter.version == good:
            at_good[worker] = adapter.tensors()

    done = run_in_threads(
        stages, plan, build_program(plan), tokens_of(jobs), on_nonfinite="quarantine", after_leg=watch
    )
    assert lines(done.records, wild) == list(enumerate(states))
    assert steps_kept([record for record in done.records if record.adapter == wild.name]) == good
    for worker, stage in enumerate(stages):
        for name, weight in stage.adapters[BAD].parameters.items():
            assert weight.isfinite().all()
            assert torch.equal(weight, at_good[worker][f"weight/{name}"])
    # Nobody who shares its microbatches notices.
    run_in_threads(quiet, sane_plan, build_program(sane_plan), tokens_of(sane))
    for adapter in (0, 2):
        assert same(state(stages, adapter), state(quiet, adapter))


def test_skip_leaves_out_one_step_and_goes_on(
    make_stages: Any, tokens_of: Any, small_plan: Any, three_jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = three_jobs(num_steps=5)
    plan = small_plan(jobs, num_stages=2)
    monkeypatch.setattr(execute, "adapter_losses", broken_loss)
    stages = make_stages(plan)
    records, _ = run(stages, plan, tokens_of(jobs), mode="skip")
    assert lines(records, jobs[BAD]) == [(0, "taken"), (1, "taken"), (2, "skipped"), (3, "taken"), (4, "taken")]
    for stage in stages:
        assert stage.adapters[BAD].alive.item() is True
        state_of = stage.adapters[BAD].optimizer.state
        assert {int(entry["step"].item()) for entry in state_of.values()} == {4}
