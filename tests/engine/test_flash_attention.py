"""FlashAttention-4 is taken where it is installed and was written for the GPU; torch's attention everywhere else."""

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from loraplex.engine.attention import packed_attention
from loraplex.engine.batch import PackedRows
from loraplex.engine.flash_attention import flash_attention_4

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    flash_attention_4.cache_clear()
    yield
    flash_attention_4.cache_clear()


def pretend(monkeypatch: pytest.MonkeyPatch, *, capability: tuple[int, int], package: types.ModuleType | None) -> None:
    """A GPU of this capability, and the package as given or none at all."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.delitem(sys.modules, "flash_attn.cute", raising=False)
    if package is None:
        monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
        monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    else:
        package.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
        monkeypatch.setitem(sys.modules, "flash_attn", package)
        for name, value in vars(package).items():
            if isinstance(value, types.ModuleType):
                monkeypatch.setitem(sys.modules, f"flash_attn.{name}", value)


def package_with(call: Any) -> types.ModuleType:
    package, cute = types.ModuleType("flash_attn"), types.ModuleType("flash_attn.cute")
    cute.flash_attn_varlen_func = call  # type: ignore[attr-defined]
    package.cute = cute  # type: ignore[attr-defined]
    return package


@pytest.mark.parametrize(("capability", "taken"), [((9, 0), True), ((10, 0), True), ((8, 0), False), ((12, 0), False)])
def test_it_serves_the_gpus_it_was_written_for(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], taken: bool
) -> None:
    def call() -> None: ...

    pretend(monkeypatch, capability=capability, package=package_with(call))
    wanted: Any = call if taken else None
    assert flash_attention_4(GPU) is wanted


def test_without_the_package_torch_s_attention_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, capability=(9, 0), package=None)
    assert flash_attention_4(GPU) is None


def test_an_older_package_of_the_same_name_is_named_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, capability=(9, 0), package=types.ModuleType("flash_attn"))
    with pytest.warns(
        UserWarning, match="flash_attn has no FlashAttention-4 that works here .*torch's attention is used"
    ):
        assert flash_attention_4(GPU) is None


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128])
def test_packed_samples_attend_as_each_alone_in_float32(head_dim: int) -> None:
    lengths = (1, 127, 128, 129, 300)
    rows = PackedRows.of(lengths, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    query, key, value, grad = (
        torch.randn(sum(lengths), heads, head_dim, device="cuda", generator=generator) for heads in (8, 2, 2, 8)
    )
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in (query, key, value)]
        output = packed_attention(*leaves, rows=rows, scaling=head_dim**-0.5)
        found.append([output, *torch.autograd.grad(output, leaves, grad.to(dtype))])
    for fast, exact in zip(*found, strict=True):
        assert (fast.float() - exact).norm() < 1e-2 * exact.norm()
