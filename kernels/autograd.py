"""The autograd function of the fused linear: it saves and dispatches, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .layout import Layout
from .packing import pack_a, pack_b, unpack_a, unpack_b
from .passes import FrozenProduct, run_backward, run_forward
from .routing import Routing
from .streams import on_device
from .tiles import as_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What one call knows beside its tensors."""

    base: FrozenProduct
    layout: Layout
    routing: Routing
    targets: tuple[int, ...]
    grad_dtype: torch.dtype
    num_pairs: int
    """(adapter, target) pairs, adapter by adapter; each has an A and a B, or None."""


class FusedLinear(torch.autograd.Function):
    """y `[T, N]` from `x [T, K]`; backward regenerates the mask and saves neither it nor the dropped input."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, bias: Tensor | None, *matrices: Tensor | None) -> Tensor:
        a = pack_a(matrices[: call.num_pairs], layout=call.layout, like=x)
        b = pack_b(matrices[call.num_pairs :], layout=call.layout, like=x)
        with on_device(x.device):
            y, s = run_forward(x, call.base, bias, a, b, layout=call.layout, routing=call.routing, targets=call.targets)
        ctx.call = call
        ctx.shapes = [None if matrix is None else matrix.shape for matrix in matrices]
        ctx.save_for_backward(x, s, a, b)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        call: Call = ctx.call
        x, s, a, b = ctx.saved_tensors
        dx, da, db = run_backward(
            as_rows(dy), x, s, call.base, a, b, layout=call.layout, routing=call.routing, targets=call.targets,
            grad_dtype=call.grad_dtype, needs_dx=ctx.needs_input_grad[1],
        )  # fmt: skip
        dbias = dy.sum(dim=0) if ctx.needs_input_grad[2] else None
        n = call.num_pairs
        grads = unpack_a(da, ctx.shapes[:n], num_targets=call.layout.num_targets)
        grads += unpack_b(db, ctx.shapes[n:], sizes=call.layout.out_features)
        return None, dx, dbias, *grads
