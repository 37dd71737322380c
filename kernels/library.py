"""The fused linear as registered operators, so that `torch.compile`, `opcheck` and fake tensors know it.

A compiled graph calls these; eager code calls `autograd.FusedLinear`, the same passes with less dispatch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .fused import frozen_product, make_layout
from .layout import padded_rank
from .packing import pack_a, pack_b, unpack_a, unpack_b
from .passes import run_backward, run_forward
from .routing import Routing
from .tiles import as_rows

_ROUTING = "Tensor description, Tensor words, Tensor thresholds, Tensor branch_scale, Tensor token_index"
_ADAPTERS = "Tensor[] lora_a, Tensor[] lora_b, int[] slots, int[] targets"


@torch.library.custom_op(
    "loraplex::multi_lora_forward",
    mutates_args=(),
    schema=f"(Tensor x, Tensor[] weights, Tensor? bias, {_ADAPTERS}, {_ROUTING}) -> (Tensor, Tensor)",
)
def multi_lora_forward(
    x: Tensor, weights: Sequence[Tensor], bias: Tensor | None,
    lora_a: Sequence[Tensor], lora_b: Sequence[Tensor], slots: Sequence[int], targets: Sequence[int],
    description: Tensor, words: Tensor, thresholds: Tensor, branch_scale: Tensor, token_index: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(y `[T, N]`, S `[T, C]`). `slots[i]` is the place of `lora_a[i]` among the (adapter, target) pairs."""
    routing = Routing.from_tensors(description, words, thresholds, branch_scale, token_index)
    layout = make_layout(x, tuple(weight.shape[0] for weight in weights), lora_a, routing=routing)
    num_pairs = layout.num_adapters * layout.num_targets
    a = pack_a(_spread(lora_a, slots, num_pairs), layout=layout, like=x)
    b = pack_b(_spread(lora_b, slots, num_pairs), layout=layout, like=x)
    return run_forward(x, frozen_product(weights), bias, a, b, layout=layout, routing=routing, targets=targets)


@multi_lora_forward.register_fake
def _(
    x: Tensor, weights: Sequence[Tensor], bias: Tensor | None, lora_a: Sequence[Tensor], *_rest: Any
) -> tuple[Tensor, Tensor]:
    num_columns = sum(weight.shape[0] for weight in weights)
    r = padded_rank([matrix.shape[0] for matrix in lora_a])
    return x.new_empty((x.shape[0], num_columns)), x.new_empty((x.shape[0], len(weights) * r))


@torch.library.custom_op(
    "loraplex::multi_lora_backward",
    mutates_args=(),
    schema=f"(Tensor dy, Tensor x, Tensor s, Tensor[] weights, {_ADAPTERS}, {_ROUTING}, bool needs_dx)"
    " -> (Tensor, Tensor, Tensor)",
)
def multi_lora_backward(
    dy: Tensor, x: Tensor, s: Tensor, weights: Sequence[Tensor],
    lora_a: Sequence[Tensor], lora_b: Sequence[Tensor], slots: Sequence[int], targets: Sequence[int],
    description: Tensor, words: Tensor, thresholds: Tensor, branch_scale: Tensor, token_index: Tensor, needs_dx: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx `[T, K]`, or nothing of it unless `needs_dx`; dA `[adapters, C, K]`; dB `[adapters, N, R]`)."""
    routing = Routing.from_tensors(description, words, thresholds, branch_scale, token_index)
    layout = make_layout(x, tuple(weight.shape[0] for weight in weights), lora_a, routing=routing)
    num_pairs = layout.num_adapters * layout.num_targets
    dx, da, db = run_backward(
        as_rows(dy), x, s, frozen_product(weights),
        pack_a(_spread(lora_a, slots, num_pairs), layout=layout, like=x),
        pack_b(_spread(lora_b, slots, num_pairs), layout=layout, like=x),
        layout=layout, routing=routing, targets=targets, grad_dtype=lora_a[0].dtype, needs_dx=needs_dx,
    )  # fmt: skip
    return x.new_empty((0, x.shape[1])) if dx is None else dx, da, db


@multi_lora_backward.register_fake
def _(
    dy: Tensor, x: Tensor, s: Tensor, weights: Sequence[Tensor], lora_a: Sequence[Tensor], *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    words, needs_dx = rest[4], rest[8]
    r = padded_rank([matrix.shape[0] for matrix in lora_a])
    return (
        x.new_empty((x.shape[0] if needs_dx else 0, x.shape[1])),
        lora_a[0].new_empty((words.shape[0], len(weights) * r, x.shape[1])),
        lora_a[0].new_empty((words.shape[0], dy.shape[1], r)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weights, _, lora_a, lora_b, slots, targets, *routing = inputs
    ctx.counts = len(weights), len(lora_a)
    ctx.slots, ctx.targets = slots, targets
    ctx.save_for_backward(x, output[1], *routing, *weights, *lora_a, *lora_b)


def _backward(ctx: Any, dy: Tensor, _ds: Tensor | None) -> tuple[Any, ...]:
    num_weights, num_matrices = ctx.counts
    x, s, *rest = ctx.saved_tensors
    routing, rest = rest[:5], rest[5:]
    weights, lora = rest[:num_weights], rest[num_weights:]
    lora_a, lora_b = lora[:num_matrices], lora[num_matrices:]
    dx, da, db = multi_lora_backward(
        dy, x, s, weights, lora_a, lora_b, ctx.slots, ctx.targets, *routing, ctx.needs_input_grad[0]
    )
    sizes = tuple(weight.shape[0] for weight in weights)
    num_pairs = routing[1].shape[0] * num_weights
    a_shapes = _spread([matrix.shape for matrix in lora_a], ctx.slots, num_pairs)
    b_shapes = _spread([matrix.shape for matrix in lora_b], ctx.slots, num_pairs)
    grads_a = [grad.clone() for grad in unpack_a(da, a_shapes, num_targets=num_weights) if grad is not None]
    grads_b = [grad.clone() for grad in unpack_b(db, b_shapes, sizes=sizes) if grad is not None]
    dbias = dy.sum(dim=0) if ctx.needs_input_grad[2] else None
    return (
        dx if ctx.needs_input_grad[0] else None, [None] * num_weights, dbias, grads_a, grads_b,
        None, None, None, None, None, None, None,
    )  # fmt: skip


multi_lora_forward.register_autograd(_backward, setup_context=_setup_context)


def registered_linears(
    x: Tensor, weights: Sequence[Tensor], bias: Tensor | None, a: Sequence[Tensor | None], b: Sequence[Tensor | None],
    *, routing: Routing, targets: Sequence[int],
) -> Tensor:  # fmt: skip
    """y `[T, N]` through the registered operator; `a` and `b` hold one entry per (adapter, target) pair."""
    slots = [slot for slot, matrix in enumerate(a) if matrix is not None]
    y: Tensor = multi_lora_forward(
        x, list(weights), bias,
        [matrix for matrix in a if matrix is not None], [matrix for matrix in b if matrix is not None],
        slots, list(targets), routing.description, routing.words, routing.thresholds, routing.branch_scale,
        routing.token_index,
    )[0]  # fmt: skip
    return y


def _spread(matrices: Sequence[Any], slots: Sequence[int], num_pairs: int) -> list[Any]:
    """One entry per pair, None where there is no matrix."""
    spread = [None] * num_pairs
    for slot, matrix in zip(slots, matrices, strict=True):
        spread[slot] = matrix
    return spread
