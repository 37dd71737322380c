"""Tensors `[..., H]` as row kernels see them: two leading strides, so that heads inside wider rows need no copy."""

from __future__ import annotations

import torch
from torch import Tensor

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def as_rows(x: Tensor) -> tuple[Tensor, int, int, int]:
    """(x with unit last stride, inner, strides of outer and inner) of x as `[outer, inner, H]`.

    Row i is (i // inner, i % inner); a copy is made only where two strides cannot say where the rows are.
    """
    if x.stride(-1) != 1:
        x = x.contiguous()
    if x.ndim == 2:
        # no view: making one takes the host as long as the rest of this
        return x, 1, x.stride(0), 0
    if x.ndim > 3:
        x = x.flatten(0, -3)
    return (x, x.shape[1], x.stride(0), x.stride(1)) if x.ndim == 3 else (x, 1, 0, 0)


def runs_kernels(x: Tensor) -> bool:
    """Whether the Triton kernels take this tensor; float64, and any device but a CUDA GPU, go to the plain version."""
    return x.is_cuda and x.dtype in KERNEL_DTYPES


def check_frozen(weight: Tensor, name: str) -> None:
    """Raise `ValueError` for a weight that would want a gradient: none is ever computed."""
    if weight.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} requires a gradient: base weights are frozen here; call requires_grad_(False) on it")


def num_warps_for(num_elements: int) -> int:
    """Warps of a program that holds so many elements: 16 a lane, 1 to 16 warps (a power of two)."""
    warps = 1
    while warps < 16 and num_elements > warps * 512:
        warps *= 2
    return warps
