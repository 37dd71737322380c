"""`banked_gated_linears` by the Triton kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .bank import AdapterBank
from .fused_bank import BankedCall, banked_call, fused_banked_linears
from .gated_passes import run_gated_backward
from .nf4 import Nf4Weight
from .passes import run_forward
from .routing import Routing
from .streams import on_device
from .swiglu_kernel import forward, fused_swiglu
from .tiles import as_rows


class GatedLinear(torch.autograd.Function):
    """y `[T, N]` from `gate_up [T, 2 K]`; saves gate_up and S."""

    @staticmethod
    def forward(ctx: Any, call: BankedCall, gate_up: Tensor, bias: Tensor | None, _anchor: Tensor | None) -> Tensor:
        with on_device(gate_up.device):
            y, s = run_forward(
                forward(gate_up), call.base, bias, call.bank.rows_a, call.bank.rows_b,
                layout=call.layout, routing=call.routing, targets=call.targets,
            )  # fmt: skip
        ctx.call = call
        ctx.save_for_backward(gate_up, s)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        call: BankedCall = ctx.call
        gate_up, s = ctx.saved_tensors
        dy = as_rows(dy)
        with on_device(dy.device):
            dgate_up = run_gated_backward(
                dy, gate_up, s, call.base, call.bank.rows_a, call.bank.rows_b, (call.bank.grad_a, call.bank.grad_b),
                layout=call.layout, routing=call.routing, targets=call.targets, needs_input=ctx.needs_input_grad[1],
            )  # fmt: skip
        return None, dgate_up, dy.sum(dim=0) if ctx.needs_input_grad[2] else None, None


def fused_gated_linears(
    gate_up: Tensor,
    weights: Sequence[Tensor | Nf4Weight],
    biases: Sequence[Tensor | None],
    bank: AdapterBank,
    *,
    routing: Routing,
    targets: Sequence[int],
) -> Tensor:
    """`banked_gated_linears` with arguments taken as checked."""
    if not routing.segments:
        # the frozen linear keeps no input
        return fused_banked_linears(fused_swiglu(gate_up), weights, biases, bank, routing=routing, targets=targets)
    rows = as_rows(gate_up)
    call, bias = banked_call(rows, weights, biases, bank, routing=routing, targets=targets)
    anchor = None if rows.requires_grad else bank.anchor
    y: Tensor = GatedLinear.apply(call, rows, bias, anchor)  # type: ignore[no-untyped-call]
    return y
