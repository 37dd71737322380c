"""Rotary position embedding over a joint q/k/v projection, in transformers' rotate-half convention.

Kernels on a CUDA device (`rope_kernel`), plain PyTorch elsewhere and for float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import runs_kernels


def split_and_rotate(
    qkv: Tensor, cos: Tensor, sin: Tensor, *, num_heads: int, num_kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(q `[T, Hq, D]`, k `[T, Hkv, D]`, v `[T, Hkv, D]`), q and k rotated, of `qkv [T, (Hq + 2 Hkv) * D]`.

    `cos`, `sin [T, D]` in any floating dtype, one row a token, as transformers' rotary embedding gives them; they get
    no gradient. Backward writes one tensor in one pass. Raises `ValueError` on arguments that do not fit together.
    """
    if cos.ndim != 2 or cos.shape != sin.shape or cos.shape[1] % 2:
        raise ValueError(f"cos has shape {tuple(cos.shape)}, sin {tuple(sin.shape)}: give both [T, D], D even")
    num_tokens, d = cos.shape
    if num_heads < 1 or num_kv_heads < 1:
        raise ValueError(f"num_heads is {num_heads} and num_kv_heads {num_kv_heads}: give at least 1 of each")
    if qkv.shape != (num_tokens, (num_heads + 2 * num_kv_heads) * d):
        raise ValueError(
            f"qkv has shape {tuple(qkv.shape)}: {num_tokens} tokens with {num_heads} + 2 x {num_kv_heads} heads of "
            f"{d} make [{num_tokens}, {(num_heads + 2 * num_kv_heads) * d}]"
        )
    if not (qkv.is_floating_point() and cos.is_floating_point() and sin.is_floating_point()):
        raise ValueError(f"qkv has dtype {qkv.dtype}, cos {cos.dtype}, sin {sin.dtype}: give floating dtypes")
    if cos.device != qkv.device or sin.device != qkv.device:
        raise ValueError(f"qkv is on {qkv.device}, cos on {cos.device}, sin on {sin.device}: move them to one device")
    if runs_kernels(qkv):
        from .rope_kernel import fused_split_and_rotate

        return fused_split_and_rotate(qkv, cos, sin, num_heads=num_heads, num_kv_heads=num_kv_heads)
    return reference_split_and_rotate(qkv, cos, sin, num_heads=num_heads, num_kv_heads=num_kv_heads)


def reference_split_and_rotate(
    qkv: Tensor, cos: Tensor, sin: Tensor, *, num_heads: int, num_kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in plain PyTorch, in qkv's dtype as transformers does it; v is a view of qkv."""
    d = cos.shape[1]
    heads = qkv.reshape(cos.shape[0], num_heads + 2 * num_kv_heads, d)
    turned, v = heads[:, : num_heads + num_kv_heads], heads[:, num_heads + num_kv_heads :]
    first, second = turned.chunk(2, dim=-1)
    half_turned = torch.cat((-second, first), dim=-1)
    turned = turned * cos.to(qkv.dtype)[:, None] + half_turned * sin.to(qkv.dtype)[:, None]
    return turned[:, :num_heads], turned[:, num_heads:], v


__all__ = ["reference_split_and_rotate", "split_and_rotate"]
