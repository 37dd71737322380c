"""One call of the fused linear: the passes in order, forward and backward, on plain tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .backward import input_grad, output_grad
from .forward import expand, shrink
from .layout import Layout
from .routing import Routing


class FrozenProduct(Protocol):
    """A frozen base weight `[N, K]`, in whatever form it is stored."""

    def add_forward(self, y: Tensor, x: Tensor) -> None:
        """`y += x W^T`, in place."""

    def add_backward(self, dx: Tensor, dy: Tensor) -> None:
        """`dx += dy W`, in place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseProduct:
    """One dense weight for each target, each the library's own GEMM."""

    weights: tuple[Tensor, ...]

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
    s = shrink(x, a, layout=layout, routing=routing, targets=targets)
    y = torch.empty((x.shape[0], layout.total_out_features), dtype=x.dtype, device=x.device)
    expand(y, s, b, bias, layout=layout, routing=routing)
    base.add_forward(y, x)
    return y, s


def run_backward(
    dy: Tensor, x: Tensor, s: Tensor, base: FrozenProduct, a: Tensor, b: Tensor,
    *, layout: Layout, routing: Routing, targets: Sequence[int], grad_dtype: torch.dtype, needs_dx: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:  # fmt: skip
    """(dx `[T, K]` or None, dA `[adapters, C, K]`, dB `[adapters, N, R]`) from `dy [T, N]`."""
    ds, db = output_grad(dy, s, b, layout=layout, routing=routing, grad_dtype=grad_dtype)
    da, dx = input_grad(
        x, ds, a, layout=layout, routing=routing, targets=targets, grad_dtype=grad_dtype, needs_dx=needs_dx
    )
    if not needs_dx:
        return None, da, db
    base.add_backward(dx, dy)
    return dx, da, db
