# ruff: noqa: N803 (capital dimension names, as in the formulas)
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Rotary embedding on the GPU: one program a token splits and rotates all its heads, or joins and rotates back."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launching import launch
from .rows import num_warps_for
from .sizes import next_power_of_2
from .streams import on_device


@triton.jit
def move_heads(
    from_ptr, stride_from, to_ptr, stride_to, c_1, c_2, s_1, s_2, o_half,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr, ROTATE: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Copy `[HEADS, 2 HALF]` of one token, rotated by `c`, `s` `[HALF]` of either half, or by their transpose."""
    # [BLOCK], [BLOCK, half]
    head = tl.arange(0, BLOCK)
    mask = (head < HEADS)[:, None] & (o_half < HALF)[None, :]
    p_from = from_ptr + head[:, None] * stride_from + o_half[None, :]
    x_1 = tl.load(p_from, mask=mask, other=0.0)
    x_2 = tl.load(p_from + HALF, mask=mask, other=0.0)
    p_to = to_ptr + head[:, None] * stride_to + o_half[None, :]
    if ROTATE:
        w_1, w_2 = x_1.to(tl.float32), x_2.to(tl.float32)
        if BACK:
            y_1 = w_1 * c_1[None, :] + w_2 * s_2[None, :]
            y_2 = w_2 * c_2[None, :] - w_1 * s_1[None, :]
        else:
            y_1 = w_1 * c_1[None, :] - w_2 * s_1[None, :]
            y_2 = w_2 * c_2[None, :] + w_1 * s_2[None, :]
        tl.store(p_to, y_1.to(to_ptr.dtype.element_ty), mask=mask)
        tl.store(p_to + HALF, y_2.to(to_ptr.dtype.element_ty), mask=mask)
    else:
        tl.store(p_to, x_1, mask=mask)
        tl.store(p_to + HALF, x_2, mask=mask)


@triton.jit
def rotation(cos_ptr, sin_ptr, stride_cos, stride_sin, o_half, HALF: tl.constexpr):
    """float32 cosines and sines of both halves of this program's token, each `[half]`."""
    token = tl.program_id(0).to(tl.int64)
    p_cos = cos_ptr + token * stride_cos + o_half
    p_sin = sin_ptr + token * stride_sin + o_half
    mask = o_half < HALF
    c_1 = tl.load(p_cos, mask=mask, other=0.0).to(tl.float32)
    c_2 = tl.load(p_cos + HALF, mask=mask, other=0.0).to(tl.float32)
    s_1 = tl.load(p_sin, mask=mask, other=0.0).to(tl.float32)
    s_2 = tl.load(p_sin + HALF, mask=mask, other=0.0).to(tl.float32)
    return c_1, c_2, s_1, s_2


@triton.jit
def forward_kernel(
    qkv_ptr, cos_ptr, sin_ptr, q_ptr, k_ptr, v_ptr, stride, stride_cos, stride_sin,
    HQ: tl.constexpr, HKV: tl.constexpr, HALF: tl.constexpr, BQ: tl.constexpr, BKV: tl.constexpr, BHALF: tl.constexpr,
):  # fmt: skip
    """q `[T, HQ, D]`, k and v `[T, HKV, D]` of one token, from its row of `[T, (HQ + 2 HKV) D]`."""
    token = tl.program_id(0).to(tl.int64)
    d: tl.constexpr = 2 * HALF
    # [half]
    o_half = tl.arange(0, BHALF)
    c_1, c_2, s_1, s_2 = rotation(cos_ptr, sin_ptr, stride_cos, stride_sin, o_half, HALF)
    p = qkv_ptr + token * stride
    move_heads(p, d, q_ptr + token * (HQ * d), d, c_1, c_2, s_1, s_2, o_half, HQ, BQ, HALF, True, False)
    p += HQ * d
    move_heads(p, d, k_ptr + token * (HKV * d), d, c_1, c_2, s_1, s_2, o_half, HKV, BKV, HALF, True, False)
    p += HKV * d
    move_heads(p, d, v_ptr + token * (HKV * d), d, c_1, c_2, s_1, s_2, o_half, HKV, BKV, HALF, False, False)


@triton.jit
def backward_kernel(
    dq_ptr, dk_ptr, dv_ptr, cos_ptr, sin_ptr, dqkv_ptr,
    dq_token, dq_head, dk_token, dk_head, dv_token, dv_head, stride_cos, stride_sin,
    HQ: tl.constexpr, HKV: tl.constexpr, HALF: tl.constexpr, BQ: tl.constexpr, BKV: tl.constexpr, BHALF: tl.constexpr,
):  # fmt: skip
    """dqkv's row of one token, from its dq, dk and dv of any strides."""
    token = tl.program_id(0).to(tl.int64)
    d: tl.constexpr = 2 * HALF
    # [half]
    o_half = tl.arange(0, BHALF)
    c_1, c_2, s_1, s_2 = rotation(cos_ptr, sin_ptr, stride_cos, stride_sin, o_half, HALF)
    p = dqkv_ptr + token * ((HQ + 2 * HKV) * d)
    move_heads(dq_ptr + token * dq_token, dq_head, p, d, c_1, c_2, s_1, s_2, o_half, HQ, BQ, HALF, True, True)
    p += HQ * d
    move_heads(dk_ptr + token * dk_token, dk_head, p, d, c_1, c_2, s_1, s_2, o_half, HKV, BKV, HALF, True, True)
    p += HKV * d
    move_heads(dv_ptr + token * dv_token, dv_head, p, d, c_1, c_2, s_1, s_2, o_half, HKV, BKV, HALF, False, True)


def forward(qkv: Tensor, cos: Tensor, sin: Tensor, *, num_heads: int, num_kv_heads: int) -> tuple[Tensor, ...]:
    """(q, k, v), contiguous. v is copied too: a view would keep the whole of qkv alive for attention's backward."""
    num_tokens, d = cos.shape
    q, k, v = (
        torch.empty((num_tokens, heads, d), dtype=qkv.dtype, device=qkv.device)
        for heads in (num_heads, num_kv_heads, num_kv_heads)
    )
    if num_tokens:
        with on_device(qkv.device):
            launch(
                forward_kernel, (num_tokens,), qkv, cos, sin, q, k, v, qkv.stride(0), cos.stride(0), sin.stride(0),
                device=qkv.device, **_blocks(num_heads, num_kv_heads, d),
            )  # fmt: skip
    return q, k, v


def backward(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """dqkv `[T, (Hq + 2 Hkv) * D]`, contiguous."""
    num_tokens, d = cos.shape
    num_heads, num_kv_heads = dq.shape[1], dk.shape[1]
    dqkv = torch.empty((num_tokens, (num_heads + 2 * num_kv_heads) * d), dtype=dq.dtype, device=dq.device)
    if num_tokens:
        with on_device(dq.device):
            launch(
                backward_kernel, (num_tokens,), dq, dk, dv, cos, sin, dqkv,
                dq.stride(0), dq.stride(1), dk.stride(0), dk.stride(1), dv.stride(0), dv.stride(1),
                cos.stride(0), sin.stride(0), device=dq.device, **_blocks(num_heads, num_kv_heads, d),
            )  # fmt: skip
    return dqkv


def _blocks(num_heads: int, num_kv_heads: int, d: int) -> dict[str, dict[str, int]]:
    block, half = next_power_of_2(num_heads), next_power_of_2(d // 2)
    constants = {
        "HQ": num_heads, "HKV": num_kv_heads, "HALF": d // 2, "BQ": block,
        "BKV": next_power_of_2(num_kv_heads), "BHALF": half,
    }  # fmt: skip
    return {"constants": constants, "options": {"num_warps": num_warps_for(block * half)}}


class FusedSplitAndRotate(torch.autograd.Function):
    """(q, k, v) of qkv; saves the rotation alone, which all layers share."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, num_heads: int, num_kv_heads: int
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        return forward(qkv, cos, sin, num_heads=num_heads, num_kv_heads=num_kv_heads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        dq, dk, dv = (grad if grad.stride(-1) == 1 else grad.contiguous() for grad in grads)
        return backward(dq, dk, dv, *ctx.saved_tensors), None, None, None, None


def fused_split_and_rotate(
    qkv: Tensor, cos: Tensor, sin: Tensor, *, num_heads: int, num_kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`split_and_rotate` by the kernels; arguments are taken as checked."""
    rows, cos, sin = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (qkv, cos, sin))
    q, k, v = FusedSplitAndRotate.apply(rows, cos, sin, num_heads, num_kv_heads)  # type: ignore[no-untyped-call]
    return q, k, v
