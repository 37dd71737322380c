# ruff: noqa: N803 (capital dimension names, as in the formulas)
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""RMSNorm on the GPU, the residual addition before it fused in: every row is read once and written once."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launching import launch
from .rows import as_rows, num_warps_for
from .sizes import ceil_div, next_power_of_2
from .streams import on_device


@triton.jit
def row_addresses(row, num_inner, stride_outer, stride_inner):
    """int64 `[BR]`: first element of each row of `[outer, inner, H]`."""
    return (row // num_inner).to(tl.int64) * stride_outer + (row % num_inner).to(tl.int64) * stride_inner


@triton.jit(do_not_specialize=["num_rows"])
def forward_kernel(
    x_ptr, residual_ptr, weight_ptr, y_ptr, summed_ptr, scale_ptr, num_rows, num_inner,
    x_outer, x_inner, residual_outer, residual_inner, eps,
    H: tl.constexpr, HAS_RESIDUAL: tl.constexpr, BR: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """y `[rows, H]`, scale `[rows]` = 1 / rms; with a residual also the sum that is normalised."""
    # [BR], [BH]
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    m_row = row < num_rows
    col = tl.arange(0, BH)
    mask = m_row[:, None] & (col < H)[None, :]
    o_out = row.to(tl.int64)[:, None] * H + col[None, :]
    # [BR, BH]
    o_x = row_addresses(row, num_inner, x_outer, x_inner)[:, None] + col[None, :]
    x = tl.load(x_ptr + o_x, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        o_residual = row_addresses(row, num_inner, residual_outer, residual_inner)[:, None] + col[None, :]
        x += tl.load(residual_ptr + o_residual, mask=mask, other=0.0).to(tl.float32)
        # what is normalised is what the next layers see: the sum as its dtype rounds it
        summed = x.to(summed_ptr.dtype.element_ty)
        tl.store(summed_ptr + o_out, summed, mask=mask)
        x = summed.to(tl.float32)
    # [BR]
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / H + eps)
    tl.store(scale_ptr + row, scale, mask=m_row)
    weight = tl.load(weight_ptr + col, mask=col < H, other=0.0).to(tl.float32)
    # rounded before the weight, as transformers does
    normed = (x * scale[:, None]).to(y_ptr.dtype.element_ty).to(tl.float32)
    tl.store(y_ptr + o_out, (normed * weight[None, :]).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def backward_kernel(
    dy_ptr, dsummed_ptr, x_ptr, weight_ptr, scale_ptr, dx_ptr, num_rows, num_inner,
    dy_outer, dy_inner, dsummed_outer, dsummed_inner, x_outer, x_inner,
    H: tl.constexpr, HAS_DSUMMED: tl.constexpr, BR: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """dx `[rows, H]` = scale * (g - n mean(g n)) + dsummed, where n = x * scale and g = dy * weight."""
    # [BR], [BH]
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    m_row = row < num_rows
    col = tl.arange(0, BH)
    mask = m_row[:, None] & (col < H)[None, :]
    # [BR, BH]
    o_dy = row_addresses(row, num_inner, dy_outer, dy_inner)[:, None] + col[None, :]
    dy = tl.load(dy_ptr + o_dy, mask=mask, other=0.0).to(tl.float32)
    o_x = row_addresses(row, num_inner, x_outer, x_inner)[:, None] + col[None, :]
    x = tl.load(x_ptr + o_x, mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + row, mask=m_row, other=0.0)
    weight = tl.load(weight_ptr + col, mask=col < H, other=0.0).to(tl.float32)
    g = dy * weight[None, :]
    n = x * scale[:, None]
    dx = scale[:, None] * (g - n * (tl.sum(g * n, axis=1) / H)[:, None])
    if HAS_DSUMMED:
        o_dsummed = row_addresses(row, num_inner, dsummed_outer, dsummed_inner)[:, None] + col[None, :]
        dx += tl.load(dsummed_ptr + o_dsummed, mask=mask, other=0.0).to(tl.float32)
    o_out = row.to(tl.int64)[:, None] * H + col[None, :]
    tl.store(dx_ptr + o_out, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def forward(x: Tensor, residual: Tensor | None, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor | None, Tensor]:
    """(y, x + residual, both contiguous as `x [..., H]`; float32 `[rows]` 1 / rms)."""
    h = x.shape[-1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    summed = None if residual is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    num_rows = math.prod(x.shape[:-1])
    scale = torch.empty(num_rows, dtype=torch.float32, device=x.device)
    if y.numel() == 0:
        return y, summed, scale
    rows, num_inner, *strides = as_rows(x)
    other, _, *other_strides = (rows, num_inner, *strides) if residual is None else as_rows(residual)
    block, height, num_warps = _blocks(h)
    with on_device(x.device):
        launch(
            forward_kernel, (ceil_div(num_rows, height),),
            rows, other, weight, y, y if summed is None else summed, scale, num_rows, num_inner,
            *strides, *other_strides, eps, device=x.device,
            constants={"H": h, "HAS_RESIDUAL": residual is not None, "BR": height, "BH": block},
            options={"num_warps": num_warps},
        )  # fmt: skip
    return y, summed, scale


def backward(dy: Tensor, dsummed: Tensor | None, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """dx `[..., H]`, contiguous, the gradient of the sum added where there is one."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if dx.numel() == 0:
        return dx
    h = x.shape[-1]
    rows, num_inner, *strides = as_rows(x)
    grads, _, *grad_strides = as_rows(dy)
    others, _, *other_strides = (grads, num_inner, *grad_strides) if dsummed is None else as_rows(dsummed)
    block, height, num_warps = _blocks(h)
    with on_device(x.device):
        launch(
            backward_kernel, (ceil_div(scale.numel(), height),),
            grads, others, rows, weight, scale, dx, scale.numel(), num_inner,
            *grad_strides, *other_strides, *strides,
            device=x.device, constants={"H": h, "HAS_DSUMMED": dsummed is not None, "BR": height, "BH": block},
            options={"num_warps": num_warps},
        )  # fmt: skip
    return dx


def _blocks(h: int) -> tuple[int, int, int]:
    # Columns, rows and warps of a program: short rows (a head) share one.
    block: int = next_power_of_2(h)
    height = max(1, 2048 // block)
    return block, height, num_warps_for(block * height)


class FusedRmsNorm(torch.autograd.Function):
    """y of x; saves x and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, _, scale = forward(x, None, weight, eps=eps)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return backward(dy, None, *ctx.saved_tensors), None, None


class FusedAddRmsNorm(torch.autograd.Function):
    """(y, x + residual); saves the sum, which lives on as the residual anyway, and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor | None]:
        y, summed, scale = forward(x, residual, weight, eps=eps)
        ctx.save_for_backward(summed, weight, scale)
        ctx.set_materialize_grads(False)
        return y, summed

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, dsummed: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        dx = dsummed if dy is None else backward(dy, dsummed, *ctx.saved_tensors)
        return dx, dx, None, None


def fused_rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """`rms_norm` by the kernels; arguments are taken as checked."""
    y: Tensor = FusedRmsNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return y


def fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """`add_rms_norm` by the kernels; arguments are taken as checked."""
    y, summed = FusedAddRmsNorm.apply(x, residual, weight, eps)  # type: ignore[no-untyped-call]
    return y, summed
