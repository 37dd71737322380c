"""SwiGLU and the linear behind it as one: gate and up are kept for the backward, their product is not."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .bank import AdapterBank, banked_linears
from .checks import check_banked
from .nf4 import Nf4Weight
from .routing import Routing
from .rows import runs_kernels
from .swiglu import check_gate_up, swiglu


def banked_gated_linears(
    gate_up: Tensor,
    weights: Sequence[Tensor | Nf4Weight],
    biases: Sequence[Tensor | None],
    bank: AdapterBank,
    *,
    routing: Routing,
    targets: Sequence[int],
) -> Tensor:
    """`banked_linears(swiglu(gate_up), ...)`, bit for bit, `[T, sum of N]` from `gate_up [T, 2 K]`.

    On a CUDA device the backward makes the product again in passing; elsewhere, and in float64, the two ops run one
    after the other. Raises `ValueError` on arguments that do not fit together.
    """
    check_gate_up(gate_up)
    product_like = gate_up[:, : gate_up.shape[1] // 2]
    check_banked(product_like, weights, biases, bank, routing=routing, targets=targets)
    if runs_kernels(gate_up):
        from .fused_gated import fused_gated_linears

        return fused_gated_linears(gate_up, weights, biases, bank, routing=routing, targets=targets)
    return banked_linears(swiglu(gate_up), weights, biases, bank, routing=routing, targets=targets)


__all__ = ["banked_gated_linears"]
