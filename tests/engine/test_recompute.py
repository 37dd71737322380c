"""Activations made again in the backward: the same bits, fewer bytes kept, and each microbatch's own adapters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loraplex.engine.packer import Packer
from loraplex.engine.recompute import remade
from loraplex.engine.stage import make_stage
from loraplex.traces.costs import RecomputeMode

MODES: tuple[RecomputeMode, ...] = ("none", "selective", "full")


def test_what_is_remade_is_not_kept() -> None:
    weight = torch.randn(4, 4, requires_grad=True)
    x = torch.randn(3, 4)
    product = x * 2
    calls = []

    def make() -> Tensor:
        calls.append(1)
        return x * 2

    with remade(product, make):
        y = product.view(3, 4) @ weight
    expected = product.T @ torch.ones(3, 4)
    product.zero_()
    assert not calls
    torch.autograd.backward(y.sum())
    assert weight.grad is not None
    assert torch.equal(weight.grad, expected)
    assert calls == [1]


def gradients(
    folder: Path, plan: Any, tokens: Any, mode: RecomputeMode, *, device: str = "cpu", dtype: torch.dtype | None = None
) -> tuple[dict[str, Tensor], int]:
    """Gradients of two microbatches whose backwards come after both forwards, and the bytes the forwards kept."""
    stage = make_stage(folder, plan.jobs, stage=0, num_stages=1, recompute=mode, device=device, dtype=dtype)
    for adapter in stage.adapters:
        generator = torch.Generator().manual_seed(1)
        for weight in adapter.parameters.values():
            weight.data.copy_(torch.randn(weight.shape, generator=generator) / 10)
        adapter.gradients.refresh()
    own = {weight.untyped_storage().data_ptr() for weight in stage.model.parameters()}
    kept: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    packer = Packer(plan.jobs, tokens, device=device)
    outputs = []
    for held in plan.microbatches[:2]:
        packed = packer.pack(held)
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            outputs.append(
                stage.model(packed.token_ids, rows=packed.rows, routing=packed.routing, recompute=stage.recompute)
            )
    for output in outputs:
        torch.autograd.backward(output.square().sum())
    found = {
        f"{index}/{name}": gradient.clone()
        for index, adapter in enumerate(stage.adapters)
        for name, gradient in adapter.gradients.gathered().items()
    }
    return found, sum(kept.values())


def test_every_mode_gives_the_same_bits_and_keeps_less(
    model_folder: Path, small_plan: Any, three_jobs: Any, tokens_of: Any
) -> None:
    jobs = three_jobs(num_steps=2, dropout=0.3)
    plan = small_plan(jobs, num_stages=1)
    found = {mode: gradients(model_folder, plan, tokens_of(jobs), mode) for mode in MODES}
    plain, most = found["none"]
    assert len(plain) > 20
    for mode in ("selective", "full"):
        own, _ = found[mode]
        assert own.keys() == plain.keys()
        assert all(torch.equal(own[name], plain[name]) for name in plain)
    # In full mode the hooks see what the checkpoints keep, a residual a layer.
    assert found["full"][1] < found["selective"][1] < most


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_kept_or_remade_without_gradients(
    model_folder: Path, small_plan: Any, three_jobs: Any, tokens_of: Any, mode: RecomputeMode
) -> None:
    jobs = three_jobs(num_steps=1)
    plan = small_plan(jobs, num_stages=1)
    stage = make_stage(model_folder, jobs, stage=0, num_stages=1, recompute=mode)
    packed = Packer(jobs, tokens_of(jobs)).pack(plan.microbatches[0])
    with torch.no_grad():
        output = stage.model(packed.token_ids, rows=packed.rows, routing=packed.routing, recompute=mode)
    assert output.shape == (1, sum(packed.rows.sample_lengths), 32)
    assert not output.requires_grad
