"""Warming up runs a microbatch through a stage and leaves no trace of it: training afterwards has the same bits."""

from typing import Any

import pytest
import torch

from loraplex.engine.threads import run_in_threads
from loraplex.engine.warm_up import warm_up
from loraplex.planner.build_program import build_program


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
