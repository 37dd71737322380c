"""Gradients stop where no adapter is below: nothing walks back through what stands before the first adapter."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from loraplex.engine.attention import packed_attention
from loraplex.engine.packer import Packer


@pytest.mark.parametrize(
    ("targets", "walked"),
    [
        # Layer 0's attention stands before its first adapter, in the first stage alone.
        (("down_proj",), [False, True, True, True]),
        (("q_proj",), [True, True, True, True]),
    ],
)
def test_nothing_below_the_first_adapter_is_differentiated(
    make_stages: Any,
    small_plan: Any,
    three_jobs: Any,
    tokens_of: Any,
    monkeypatch: pytest.MonkeyPatch,
    targets: tuple[str, ...],
    walked: list[bool],
) -> None:
    jobs = tuple(replace(job, lora=replace(job.lora, target_modules=targets)) for job in three_jobs(num_steps=1))
    plan = small_plan(jobs, num_stages=1)
    (stage,) = make_stages(plan)
    seen: list[bool] = []

    def attention(query: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        seen.append(query.requires_grad)
        return packed_attention(query, *rest, **options)

    monkeypatch.setattr("loraplex.engine.decoder.packed_attention", attention)
    packed = Packer(jobs, tokens_of(jobs)).pack(plan.microbatches[0])
    hidden = stage.model(packed.token_ids, rows=packed.rows, routing=packed.routing)
    assert seen == walked
    torch.autograd.backward(hidden.sum())
    assert all(parameter.grad is None for parameter in stage.model.parameters() if not parameter.requires_grad)
