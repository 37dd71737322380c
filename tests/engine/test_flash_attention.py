"""FlashAttention-4 is taken where it is installed and was written for the GPU; torch's attention everywhere else."""

import importlib.machinery
import importlib.util
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from loraplex.engine.attention import packed_attention
from loraplex.engine.batch import PackedRows
from loraplex.engine.flash_attention import (
    ATTENTION,
    asked_attention,
    check_attention,
    flash_attention_4,
    why_no_flash,
)
from loraplex.traces.errors import InputError

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(ATTENTION, raising=False)
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


def call() -> None:
    """Stands for FlashAttention-4."""


def test_who_asks_for_torch_s_attention_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, capability=(9, 0), package=package_with(call))
    monkeypatch.setenv(ATTENTION, "torch")
    assert flash_attention_4(GPU) is None
    # it could be had all the same
    assert why_no_flash(GPU) is None


@pytest.mark.parametrize(
    ("capability", "package", "why"),
    [
        ((9, 0), None, "FlashAttention-4 is not installed"),
        ((8, 0), package_with(call), "FlashAttention-4 was not written for a GPU of compute capability 8.0"),
        ((9, 0), types.ModuleType("flash_attn"), "flash_attn has no FlashAttention-4 that works here .*cute"),
    ],
)
def test_who_asks_for_flash_in_vain_is_told_why_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], package: types.ModuleType | None, why: str
) -> None:
    pretend(monkeypatch, capability=capability, package=package)
    found = why_no_flash(GPU)
    assert found is not None
    assert re.match(why, found)
    # nobody asks, nobody looks
    check_attention(GPU)
    monkeypatch.setenv(ATTENTION, "flash")
    with pytest.raises(InputError, match=f"{ATTENTION}=flash: {why}.*; install the extra flash on a machine with"):
        check_attention(GPU)


def test_who_asks_for_flash_where_it_is_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, capability=(9, 0), package=package_with(call))
    monkeypatch.setenv(ATTENTION, "flash")
    check_attention(GPU)
    wanted: Any = call
    assert flash_attention_4(GPU) is wanted


def test_an_attention_that_nobody_knows_is_told_with_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_attention() == "auto"
    monkeypatch.setenv(ATTENTION, "cudnn")
    with pytest.raises(InputError, match="LORAPLEX_ATTENTION=cudnn is unknown; choose from auto, torch, flash"):
        asked_attention()


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
