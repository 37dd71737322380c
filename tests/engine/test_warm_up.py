"""Warming up runs microbatches through a stage and leaves no trace of them: training afterwards has the same bits."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from loraplex.engine.buckets import GraphBuckets
from loraplex.engine.run_alone import run_alone
from loraplex.engine.threads import run_in_threads
from loraplex.engine.warm_up import kinds, warm_up
from loraplex.planner.build_program import build_program
from loraplex.planner.jobs import LoraSettings, job_from_lengths
from loraplex.planner.plan import Microbatch, Plan, microbatch


@pytest.mark.parametrize(("num_stages", "num_replicas"), [(1, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", torch.float32), pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu)]
)
def test_training_after_it_is_as_without(
    make_stages: Any,
    tokens_of: Any,
    small_plan: Any,
    three_jobs: Any,
    num_stages: int,
    num_replicas: int,
    device: str,
    dtype: torch.dtype,
) -> None:
    jobs = three_jobs(num_steps=2, dropout=0.1)
    plan = small_plan(jobs, num_stages=num_stages, num_replicas=num_replicas)
    cold, warm = (make_stages(plan, device=device, dtype=dtype) for _ in range(2))
    for stage in warm:
        before = [adapter.tensors() for adapter in stage.adapters]
        warm_up(stage, plan, tokens_of(jobs))
        for adapter, tensors in zip(stage.adapters, before, strict=True):
            assert adapter.version == 0
            assert not adapter.closed
            for name, tensor in adapter.tensors().items():
                assert torch.equal(tensor, tensors[name] if name in tensors else torch.zeros_like(tensor)), name
    for stages in (cold, warm):
        run_in_threads(stages, plan, build_program(plan), tokens_of(jobs))
    for one, other in zip(cold, warm, strict=True):
        for left, right in zip(one.adapters, other.adapters, strict=True):
            for name, weight in left.parameters.items():
                assert torch.equal(weight, right.parameters[name]), name


def as_first(held: Microbatch) -> Microbatch:
    return Microbatch(samples=tuple(replace(sample, global_batch=0) for sample in held.samples))


def test_every_kind_of_microbatch_is_run_once_as_of_a_first_step() -> None:
    jobs = tuple(
        job_from_lengths(
            adapter=adapter,
            name=f"job{adapter}",
            lengths=[10, 10, 10, 20],
            global_batch_size=2,
            lora=LoraSettings(lora_dropout=dropout),
        )
        for adapter, dropout in enumerate((0.0, 0.1))
    )
    (plain, other), (later, longer) = jobs[0].global_batches
    (drawn, drawn_too), (last, long) = jobs[1].global_batches
    held = [(plain,), (other, drawn), (drawn_too,), (), (later,), (longer, last), (long,)]
    plan = Plan(
        jobs=jobs, num_stages=2, num_replicas=7, microbatch_tokens=64, microbatches=tuple(map(microbatch, held))
    )
    alone, both, drops, *_, drops_longer = map(as_first, plan.microbatches)
    # Both, alone with dropout, and that shorter, alone without; not the empty one, nor what is like another.
    assert kinds(plan) == (both, drops_longer, alone, drops)


def test_its_peak_is_not_trainings(
    make_stages: Any, tokens_of: Any, small_plan: Any, three_jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = three_jobs(num_steps=1)
    plan = small_plan(jobs, num_stages=1)
    (stage,) = make_stages(plan)
    heard: list[str] = []

    def noted(*words: Any, **more: Any) -> None:
        run_alone(*words, **more)
        heard.append("ran")

    monkeypatch.setattr("loraplex.engine.warm_up.run_alone", noted)
    monkeypatch.setattr("loraplex.engine.warm_up.forget_peak", lambda device: heard.append(f"forgot {device}"))
    warm_up(stage, plan, tokens_of(jobs))
    assert heard == ["ran", "forgot cpu"]


def test_a_bucket_that_comes_often_is_run_twice_for_its_graph() -> None:
    (job,) = (job_from_lengths(adapter=0, name="job", lengths=[100, 101, 102, 300, 301], global_batch_size=1),)
    held = tuple(microbatch(batch) for batch in job.global_batches)
    plan = Plan(jobs=(job,), num_stages=1, microbatch_tokens=512, microbatches=held)
    often, _, _, seldom, _ = map(as_first, held)
    assert kinds(plan, buckets=GraphBuckets()) == (seldom, often, often)
