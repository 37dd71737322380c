"""RMSNorm as Llama and Qwen compute it, alone or behind the residual addition; the weight is frozen.

Kernels on a CUDA device (`rms_norm_kernel`), plain PyTorch elsewhere and for float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import check_frozen, runs_kernels


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """`weight * (x / rms(x))` over the last dimension of `x [..., H]`; `weight [H]`, frozen, of x's dtype.

    The quotient is rounded to x's dtype before the weight, as in transformers. Rows may be strided (the heads of q
    inside a joint projection, say); the result is contiguous. Raises `ValueError` on arguments that do not fit.
    """
    _check(x, weight)
    if runs_kernels(x):
        from .rms_norm_kernel import fused_rms_norm

        return fused_rms_norm(x, weight, eps=eps)
    return reference_rms_norm(x, weight, eps=eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """(`rms_norm(summed)`, `summed` = x + residual), all `[..., H]` in x's dtype.

    One pass each way: backward adds the gradient that arrives through `summed`. Raises `ValueError` on arguments
    that do not fit.
    """
    _check(x, weight)
    if residual.shape != x.shape or residual.dtype != x.dtype or residual.device != x.device:
        raise ValueError(
            f"residual is {residual.dtype} {tuple(residual.shape)} on {residual.device}, x is {x.dtype} "
            f"{tuple(x.shape)} on {x.device}: give two tensors of one shape, dtype and device"
        )
    if runs_kernels(x):
        from .rms_norm_kernel import fused_add_rms_norm

        return fused_add_rms_norm(x, residual, weight, eps=eps)
    return reference_add_rms_norm(x, residual, weight, eps=eps)


def reference_rms_norm(x: Tensor, weight: Tensor, *, eps: float, inside: torch.dtype = torch.float32) -> Tensor:
    """The same in plain PyTorch. As transformers' it narrows float64 to float32 `inside`, or equals it not."""
    wide = x.to(inside)
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def reference_add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, inside: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch."""
    summed = residual + x
    return reference_rms_norm(summed, weight, eps=eps, inside=inside), summed


def _check(x: Tensor, weight: Tensor) -> None:
    if x.ndim < 1 or weight.shape != x.shape[-1:]:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}: give x [..., H] and weight [H]"
        )
    if not x.is_floating_point() or weight.dtype != x.dtype:
        raise ValueError(f"x has dtype {x.dtype}, weight {weight.dtype}: give one floating dtype")
    if weight.device != x.device:
        raise ValueError(f"x is on {x.device}, weight on {weight.device}: move them to one device")
    check_frozen(weight, "weight")


__all__ = ["add_rms_norm", "reference_add_rms_norm", "reference_rms_norm", "rms_norm"]
