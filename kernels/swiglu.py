"""The gated activation of Llama's and Qwen's MLP over a joint gate/up projection.

Kernels on a CUDA device (`swiglu_kernel`), plain PyTorch elsewhere and for float64.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import silu

from .rows import runs_kernels


def swiglu(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up`, `[T, I]`, of `gate_up [T, 2 I]`, gate in the first half of every row.

    Saves `gate_up` alone for backward. Raises `ValueError` for another shape or dtype.
    """
    check_gate_up(gate_up)
    if runs_kernels(gate_up):
        from .swiglu_kernel import fused_swiglu

        return fused_swiglu(gate_up)
    return reference_swiglu(gate_up)


def check_gate_up(gate_up: Tensor) -> None:
    """Raise `ValueError` unless these are the rows of a joint gate/up projection."""
    if gate_up.ndim != 2 or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up has shape {tuple(gate_up.shape)}: give [T, 2 I], gate before up")
    if not gate_up.is_floating_point():
        raise ValueError(f"gate_up has dtype {gate_up.dtype}: give a floating dtype")


def reference_swiglu(gate_up: Tensor) -> Tensor:
    """The same in plain PyTorch."""
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up


__all__ = ["check_gate_up", "reference_swiglu", "swiglu"]
