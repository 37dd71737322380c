"""One call of the fused linear: the passes in order, forward and backward, on plain tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .expand import expand
from .gemm import can_fuse, can_fuse_backward, fused_backward, fused_forward
from .gradients import Shares, input_gradients, output_gradients
from .layout import Layout
from .routing import Routing
from .shrink import shrink_input, shrink_output_grad
from .streams import beside


class FrozenProduct(Protocol):
    """A frozen base weight `[N, K]`, in whatever form it is stored."""

    def whole_weight(self) -> Tensor | None:
        """The weight, where it is one dense matrix."""

    def add_forward(self, y: Tensor, x: Tensor) -> None:
        """`y += x W^T`, in place."""

    def add_backward(self, dx: Tensor, dy: Tensor) -> None:
        """`dx += dy W`, in place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseProduct:
    """One dense weight for each target, each the library's own GEMM."""

    weights: tuple[Tensor, ...]

    def whole_weight(self) -> Tensor | None:
        return self.weights[0] if len(self.weights) == 1 else None

    def add_forward(self, y: Tensor, x: Tensor) -> None:
        first = 0
        for weight in self.weights:
            y[:, first : first + weight.shape[0]].addmm_(x, weight.t())
            first += weight.shape[0]

    def add_backward(self, dx: Tensor, dy: Tensor) -> None:
        first = 0
        for weight in self.weights:
            dx.addmm_(dy[:, first : first + weight.shape[0]], weight)
            first += weight.shape[0]


def run_forward(
    x: Tensor, base: FrozenProduct, bias: Tensor | None, a: Tensor, b: Tensor,
    *, layout: Layout, routing: Routing, targets: Sequence[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(y `[T, N]`, S `[T, C]`) from `x [T, K]` and the packed adapters."""
    y = torch.empty((x.shape[0], layout.total_out_features), dtype=x.dtype, device=x.device)
    weight = base.whole_weight()
    fused = weight is not None and can_fuse(x, y, weight, layout=layout, routing=routing)
    overlap = fused and layout.config.overlap
    s = shrink_input(x, a, layout=layout, routing=routing, targets=targets, overlap=overlap)
    if fused and weight is not None:
        fused_forward(y, x, weight, s, b, bias, layout=layout, routing=routing, overlap=overlap)
    else:
        expand(y, s, b, bias, layout=layout, routing=routing)
        base.add_forward(y, x)
    return y, s


def run_backward(
    dy: Tensor, x: Tensor, s: Tensor, base: FrozenProduct, a: Tensor, b: Tensor,
    *, layout: Layout, routing: Routing, targets: Sequence[int], grad_dtype: torch.dtype, needs_dx: bool,
    sums: tuple[Tensor, Tensor] | tuple[None, None] = (None, None),
) -> tuple[Tensor | None, Tensor, Tensor]:  # fmt: skip
    """(dx `[T, K]` or None, dA `[adapters, C, K]`, dB `[adapters, N, R]`) from `dy [T, N]`.

    Where `sums` (of dA and of dB, float32) are given, the gradients are added to them, and they are returned.
    The critical path is dS, then dx. dA and dB have no part in it and run beside the frozen product, except where
    the library's GEMM adds to what the pass for dA has written into dx.
    """
    weight = base.whole_weight() if needs_dx else None
    fused = weight is not None and can_fuse_backward(x, dy, weight, layout=layout, routing=routing, targets=targets)
    overlap = fused and layout.config.overlap
    ds = shrink_output_grad(dy, b, layout=layout, routing=routing, overlap=overlap)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if needs_dx else None

    def total(shares: Shares, sums: Tensor | None) -> Tensor:
        return shares.total(num_adapters=layout.num_adapters, dtype=grad_dtype, sums=sums)

    if fused or dx is None:
        with beside(dy.device, enabled=layout.config.overlap and dx is not None) as join:
            if dx is not None and weight is not None:
                fused_backward(
                    dx, dy, weight, ds, a, layout=layout, routing=routing, target=targets[0], overlap=overlap
                )
            with join:
                db = total(output_gradients(dy, s, layout=layout, routing=routing), sums[1])
                da = total(input_gradients(x, ds, a, None, layout=layout, routing=routing, targets=targets), sums[0])
        return dx, da, db
    da_shares = input_gradients(x, ds, a, dx, layout=layout, routing=routing, targets=targets)
    with beside(dy.device, enabled=layout.config.overlap) as join:
        base.add_backward(dx, dy)
        with join:
            db = total(output_gradients(dy, s, layout=layout, routing=routing), sums[1])
            da = total(da_shares, sums[0])
    return dx, da, db
