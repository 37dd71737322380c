"""`banked_linears` by the Triton kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .bank import AdapterBank
from .fused import frozen_linear, frozen_product, joined_bias
from .layout import Layout
from .nf4 import Nf4Weight
from .passes import FrozenProduct, run_backward, run_forward
from .routing import Routing
from .streams import on_device
from .tiles import as_rows
from .tuning import choose_config


@dataclass(slots=True, kw_only=True)
class Plans:
    """What a bank's calls have in common: kept with the bank, since the same linear is called for every microbatch."""

    weights: tuple[Tensor | Nf4Weight, ...]
    biases: tuple[Tensor | None, ...]
    marks: tuple[int, ...]
    """Addresses of the weights and versions of the biases when this was made."""
    base: FrozenProduct
    bias: Tensor | None
    """All biases as one, unless one of them is trained."""
    layouts: dict[tuple[int, bool], Layout] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BankedCall:
    """What one call knows beside its tensors."""

    bank: AdapterBank
    base: FrozenProduct
    layout: Layout
    routing: Routing
    targets: tuple[int, ...]


class BankedLinear(torch.autograd.Function):
    """y `[T, N]` from `x [T, K]`; the matrices' gradients go to the bank, not to autograd."""

    @staticmethod
    def forward(ctx: Any, call: BankedCall, x: Tensor, bias: Tensor | None, _anchor: Tensor | None) -> Tensor:
        with on_device(x.device):
            y, s = run_forward(
                x, call.base, bias, call.bank.rows_a, call.bank.rows_b,
                layout=call.layout, routing=call.routing, targets=call.targets,
            )  # fmt: skip
        ctx.call = call
        # not the matrices: another adapter's step may write to the bank before this call's backward
        ctx.save_for_backward(x, s)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        call: BankedCall = ctx.call
        x, s = ctx.saved_tensors
        dy = as_rows(dy)
        with on_device(x.device):
            dx, _, _ = run_backward(
                dy, x, s, call.base, call.bank.rows_a, call.bank.rows_b, layout=call.layout, routing=call.routing,
                targets=call.targets, grad_dtype=torch.float32, needs_dx=ctx.needs_input_grad[1],
                sums=(call.bank.grad_a, call.bank.grad_b),
            )  # fmt: skip
        return None, dx, dy.sum(dim=0) if ctx.needs_input_grad[2] else None, None


def fused_banked_linears(
    x: Tensor,
    weights: Sequence[Tensor | Nf4Weight],
    biases: Sequence[Tensor | None],
    bank: AdapterBank,
    *,
    routing: Routing,
    targets: Sequence[int],
) -> Tensor:
    """`banked_linears` with arguments taken as checked."""
    rows = as_rows(x)
    call, bias = banked_call(rows, weights, biases, bank, routing=routing, targets=targets)
    out_shape = (*x.shape[:-1], sum(bank.out_features))
    if not routing.segments:
        return frozen_linear(rows, weights, bias).view(out_shape)
    anchor = None if rows.requires_grad else bank.anchor
    y: Tensor = BankedLinear.apply(call, rows, bias, anchor)  # type: ignore[no-untyped-call]
    return y.view(out_shape)


def banked_call(
    rows: Tensor,
    weights: Sequence[Tensor | Nf4Weight],
    biases: Sequence[Tensor | None],
    bank: AdapterBank,
    *,
    routing: Routing,
    targets: Sequence[int],
) -> tuple[BankedCall, Tensor | None]:
    """What a call of these rows `[T, ...]` knows beside its tensors, and all its biases as one."""
    plans = _plans(bank, weights, biases)
    bias = joined_bias(weights, biases) if plans.bias is None else plans.bias
    layout = _layout(bank, plans, rows, routing)
    return BankedCall(bank=bank, base=plans.base, layout=layout, routing=routing, targets=tuple(targets)), bias


def _plans(bank: AdapterBank, weights: Sequence[Tensor | Nf4Weight], biases: Sequence[Tensor | None]) -> Plans:
    """The bank's, made anew where the frozen tensors are not those of the last call."""
    marks = tuple(weight.data_ptr() for weight in weights if isinstance(weight, Tensor))
    marks += tuple(bias._version for bias in biases if bias is not None)
    plans = bank.plans
    if plans is not None and plans.marks == marks:
        kept = zip((*plans.weights, *plans.biases), (*weights, *biases), strict=True)
        if all(old is new for old, new in kept):
            return plans
    trained = any(bias is not None and bias.requires_grad for bias in biases)
    bank.plans = Plans(
        weights=tuple(weights), biases=tuple(biases), marks=marks, base=frozen_product(weights),
        bias=None if trained else joined_bias(weights, biases),
    )  # fmt: skip
    return bank.plans


def _layout(bank: AdapterBank, plans: Plans, x: Tensor, routing: Routing) -> Layout:
    key = (x.shape[0], routing.has_dropout)
    made = plans.layouts.get(key)
    if made is None:
        made = plans.layouts[key] = Layout(
            num_adapters=bank.num_adapters,
            num_features=bank.in_features,
            out_features=bank.out_features,
            padded_rank=bank.padded_rank,
            config=choose_config(
                x.device, x.dtype, num_rows=x.shape[0], lora_rank=bank.padded_rank, dropout=routing.has_dropout
            ),
        )
    return made
