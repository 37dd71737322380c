"""Stages on a GPU: the fused pieces against the plain ones on the CPU, for every family. Run with `pytest -m gpu`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loraplex.engine.batch import PackedRows
from loraplex.engine.model import Layout, build_stage
from loraplex.engine.packer import Packer
from loraplex.engine.stage import make_stage
from loraplex.engine.tiny_model import write_tiny_model
from loraplex.traces.memory_costs import RecomputeMode

pytestmark = pytest.mark.gpu
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 264,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 64},
    "mistral": {"sliding_window": 9, "head_dim": 128},
}
LENGTHS = (5, 130, 1, 40)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {**WIDE, "model_type": request.param, **FAMILIES[request.param]}
    return write_tiny_model(tmp_path_factory.mktemp(request.param), changes=changes)


def logits(folder: Path, *, dtype: torch.dtype, device: str) -> Tensor:
    module = build_stage(folder, Layout.of(num_layers=3, stage=0, num_stages=1), dtype=dtype, device=device)
    token_ids = torch.randint(0, 264, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        hidden = module(token_ids, rows=PackedRows.of(LENGTHS, device=device))
        return (module.head_norm(hidden[0]) @ module.head_weight().T).float().cpu()


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 4e-2)])
def test_packed_samples_give_the_cpus_numbers(folder: Path, dtype: torch.dtype, limit: float) -> None:
    expected = logits(folder, dtype=torch.float32, device="cpu")
    found = logits(folder, dtype=dtype, device="cuda")
    assert ((found - expected).norm() / expected.norm()).item() < limit


def losses_and_gradients(
    folder: Path, plan: Any, tokens: Any, *, device: str, dtype: torch.dtype, recompute: RecomputeMode = "none"
) -> tuple[list[float], dict[str, Tensor]]:
    """Of two microbatches whose backwards come after both forwards, with adapters away from their start."""
    from loraplex.engine.loss import adapter_losses

    stage = make_stage(folder, plan.jobs, stage=0, num_stages=1, dtype=dtype, device=device, recompute=recompute)
    for adapter in stage.adapters:
        generator = torch.Generator().manual_seed(1)
        for weight in adapter.parameters.values():
            weight.data.copy_(torch.randn(weight.shape, generator=generator) / 20)
        adapter.gradients.refresh()
    packer = Packer(plan.jobs, tokens, device=device)
    found = []
    for held in plan.microbatches[:2]:
        packed = packer.pack(held)
        hidden = stage.model(packed.token_ids, rows=packed.rows, routing=packed.routing, recompute=recompute)
        rows = stage.model.head_norm(hidden[0, packed.target_rows])
        found.append(adapter_losses(rows, stage.model.head_weight(), packed.target_ids, packed.shares))
    for losses in found:
        torch.autograd.backward(torch.stack(losses).sum())
    gradients = {
        f"{index}/{name}": gradient.float().cpu()
        for index, adapter in enumerate(stage.adapters)
        for name, gradient in adapter.gradients.gathered().items()
    }
    return [loss.item() for losses in found for loss in losses], gradients


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-3), (torch.bfloat16, 6e-2)])
def test_losses_and_gradients_of_mixed_adapters_are_the_cpus(
    folder: Path, small_plan: Any, three_jobs: Any, tokens_of: Any, dtype: torch.dtype, limit: float
) -> None:
    jobs = three_jobs(num_steps=2, dropout=0.3)
    plan, tokens = small_plan(jobs, num_stages=1, microbatch_tokens=100), tokens_of(jobs)
    losses, expected = losses_and_gradients(folder, plan, tokens, device="cpu", dtype=torch.float32)
    own_losses, found = losses_and_gradients(folder, plan, tokens, device="cuda", dtype=dtype)
    torch.testing.assert_close(torch.tensor(own_losses), torch.tensor(losses), rtol=limit, atol=0)
    for name in expected:
        assert ((found[name] - expected[name]).norm() / expected[name].norm()).item() < limit, name


def test_recomputing_and_running_again_give_the_same(
    folder: Path, small_plan: Any, three_jobs: Any, tokens_of: Any
) -> None:
    jobs = three_jobs(num_steps=2, dropout=0.3)
    plan, tokens = small_plan(jobs, num_stages=1, microbatch_tokens=100), tokens_of(jobs)
    modes: tuple[RecomputeMode, ...] = ("none", "none", "selective", "full", "full")
    (losses, plain), *others = [
        losses_and_gradients(folder, plan, tokens, device="cuda", dtype=torch.bfloat16, recompute=mode)
        for mode in modes
    ]
    for mode, (own_losses, gradients) in zip(modes[1:], others, strict=True):
        assert own_losses == losses
        for name in plain:
            if mode == "full":
                # The two parts of the residual are added before the layer, not in its norm: their gradients are
                # rounded once more.
                assert ((gradients[name] - plain[name]).norm() / plain[name].norm()).item() < 2e-2, name
            else:
                assert torch.equal(gradients[name], plain[name]), name
    assert all(torch.equal(others[2][1][name], others[3][1][name]) for name in plain)
