"""One call of the fused linear: the passes in order, forward and backward, on plain tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .both_gradients import both_gradients
from .draws import target_word
from .expand import expand
from .gemm import can_fuse, can_fuse_backward, fused_backward, fused_forward
from .gradients import empty_shares, input_gradients, output_gradients
from .layout import Layout
from .reduce import empty_sums, sum_tiles
from .routing import Routing
from .shrink import shrink_input, shrink_output_grad
from .tape import Plan, Tape, distinct, pointers_of

SHORT_FLOP = 2e11
"""A product of fewer operations ends before the host has launched what runs beside it: outside a graph a second stream
gains nothing then, and its two waits cost 30 to 160 us of the host (H100, 8b o: T = 4096 is short, T = 8192 not;
2026-11-25)."""

MOST_PLANS = 64
"""Of one routing; a model has a handful of kinds of linears."""


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
        if len(self.weights) == 1:
            # most are; a view of all of y takes the host 1.5 us
            y.addmm_(x, self.weights[0].t())
            return
        first = 0
        for weight in self.weights:
            y[:, first : first + weight.shape[0]].addmm_(x, weight.t())
            first += weight.shape[0]

    def add_backward(self, dx: Tensor, dy: Tensor) -> None:
        if len(self.weights) == 1:
            dx.addmm_(dy, self.weights[0])
            return
        first = 0
        for weight in self.weights:
            dx.addmm_(dy[:, first : first + weight.shape[0]], weight)
            first += weight.shape[0]


class LateInput(Protocol):
    """An input that was not kept: cheap to make again, and cheaper still behind its gradient (SwiGLU's product)."""

    def make(self, tape: Tape, x: Tensor) -> None:
        """Write x."""

    def pass_on(self, tape: Tape, dx: Tensor, x: Tensor | None) -> None:
        """Take the finished gradient where it goes; in passing write x, unless None."""


Pair = tuple[Tensor, Tensor]


def run_forward(
    x: Tensor, base: FrozenProduct, bias: Tensor | None, a: Tensor, b: Tensor,
    *, layout: Layout, routing: Routing, targets: Sequence[int],
) -> Pair:  # fmt: skip
    """(y `[T, N]`, S `[T, C]`) from `x [T, K]` and the packed adapters."""
    weight = base.whole_weight()
    key = (
        "forward", *kind(x, weight, layout=layout, routing=routing, targets=targets),
        None if bias is None else bias.dtype,
    )  # fmt: skip

    def passes(tape: Tape, x: Tensor, weight: Tensor | None, a: Tensor, b: Tensor, bias: Tensor | None) -> Pair:
        return _forward_passes(tape, x, base, weight, a, b, bias, layout=layout, routing=routing, targets=targets)

    y, s = play(key, passes, (x, weight, a, b, bias), base, layout=layout, routing=routing, targets=targets)
    return y, s


def _forward_passes(
    tape: Tape, x: Tensor, base: FrozenProduct, weight: Tensor | None, a: Tensor, b: Tensor, bias: Tensor | None,
    *, layout: Layout, routing: Routing, targets: Sequence[int],
) -> Pair:  # fmt: skip
    y = tape.empty((x.shape[0], layout.total_out_features), x.dtype)
    fused = weight is not None and can_fuse(
        x, y, weight, layout=layout, routing=routing, num_columns=layout.total_out_features
    )
    early = fused and layout.config.early
    s = shrink_input(tape, x, a, layout=layout, routing=routing, targets=targets, early=early)
    if fused and weight is not None:
        fused_forward(tape, y, x, weight, s, b, bias, layout=layout, routing=routing, early=early)
    else:
        expand(tape, y, s, b, bias, layout=layout, routing=routing)
        tape.call(_add_forward, base, y, x)
    return y, s


def run_backward(
    dy: Tensor, x: Tensor, s: Tensor, base: FrozenProduct, a: Tensor, b: Tensor,
    *, layout: Layout, routing: Routing, targets: Sequence[int], grad_dtype: torch.dtype, needs_dx: bool,
    sums: Pair | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:  # fmt: skip
    """(dx `[T, K]` or None, dA `[adapters, C, K]`, dB `[adapters, N, R]`) from `dy [T, N]`.

    Where `sums` (of dA and of dB, float32) are given, the gradients are added to them, and they are returned.
    """
    weight = base.whole_weight() if needs_dx else None
    beside = layout.config.beside and needs_dx and _pays_a_stream(x, layout)
    key = (
        "backward", *kind(x, weight, layout=layout, routing=routing, targets=targets),
        dy.stride(0), grad_dtype, needs_dx, sums is None, beside,
    )  # fmt: skip

    def passes(
        tape: Tape, dy: Tensor, x: Tensor, s: Tensor, weight: Tensor | None, a: Tensor, b: Tensor,
        sum_a: Tensor | None, sum_b: Tensor | None,
    ) -> tuple[Tensor | None, Tensor, Tensor]:  # fmt: skip
        return backward_passes(
            tape, dy, x, s, base, weight, a, b, layout=layout, routing=routing, targets=targets,
            grad_dtype=grad_dtype, needs_dx=needs_dx, beside=beside,
            sums=None if sum_a is None or sum_b is None else (sum_a, sum_b),
        )  # fmt: skip

    sum_a, sum_b = (None, None) if sums is None else sums
    inputs = (dy, x, s, weight, a, b, sum_a, sum_b)
    dx, da, db = play(key, passes, inputs, base, layout=layout, routing=routing, targets=targets)
    return dx, da, db


def backward_passes(
    tape: Tape, dy: Tensor, x: Tensor, s: Tensor, base: FrozenProduct, weight: Tensor | None, a: Tensor, b: Tensor,
    *, layout: Layout, routing: Routing, targets: Sequence[int], grad_dtype: torch.dtype, needs_dx: bool,
    beside: bool, sums: Pair | None, late: LateInput | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:  # fmt: skip
    """The critical path is dS, then dx. dA and dB have no part in it and may run beside the frozen product, except
    where the library's GEMM adds to what the pass for dA has written into dx, or where x comes `late`.
    """
    assert late is None or not beside, "an x made behind its gradient cannot be read beside that"
    fused = weight is not None and can_fuse_backward(x, dy, weight, layout=layout, routing=routing, targets=targets)
    early = fused and layout.config.early
    ds = shrink_output_grad(tape, dy, b, layout=layout, routing=routing, early=early)
    dx = tape.empty(tuple(x.shape), x.dtype) if needs_dx else None
    # before the fork: what the side stream writes must not be memory that the current one still works on after it
    shares = empty_shares(tape, layout=layout, routing=routing)
    totals = sums or empty_sums(tape, shares, num_adapters=layout.num_adapters, dtype=grad_dtype)
    added_to = dx is not None and not fused
    if late is not None and not fused:
        late.make(tape, x)
    if added_to:
        input_gradients(tape, shares[0], x, ds, a, dx, layout=layout, routing=routing, targets=targets)
    with tape.side(enabled=beside) as aside:
        if fused and dx is not None and weight is not None:
            fused_backward(tape, dx, dy, weight, ds, a, layout=layout, routing=routing, early=early)
        elif dx is not None:
            tape.call(_add_backward, base, dx, dy)
        if late is not None and dx is not None:
            late.pass_on(tape, dx, x if fused else None)
        with aside:
            if added_to:
                output_gradients(tape, shares[1], dy, s, layout=layout, routing=routing)
            else:
                both_gradients(tape, shares, dy, x, s, ds, a, layout=layout, routing=routing, targets=targets)
            sum_tiles(tape, shares, totals, add=sums is not None)
    return dx, *totals


def _pays_a_stream(x: Tensor, layout: Layout) -> bool:
    """Whether the adapters' gradients should run on a stream of their own."""
    if 2.0 * x.shape[0] * layout.num_features * layout.total_out_features >= SHORT_FLOP:
        return True
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def kind(
    x: Tensor, weight: Tensor | None, *, layout: Layout, routing: Routing, targets: Sequence[int]
) -> tuple[Any, ...]:
    """What decides, with the routing's segments, which passes a call runs and all their numbers."""
    return (
        id(layout.config), layout.num_features, layout.out_features, layout.padded_rank, x.dtype, x.stride(0),
        weight is not None and weight.is_contiguous(), routing.has_dropout,
        # targets that share a mask, not their ids: those are the call's own
        tuple([targets.index(target) for target in targets]),
    )  # fmt: skip


def play(
    key: tuple[Any, ...], passes: Callable[..., tuple[Tensor | None, ...]], tensors: Sequence[Tensor | None],
    base: FrozenProduct, *, layout: Layout, routing: Routing, targets: Sequence[int],
) -> tuple[Any, ...]:  # fmt: skip
    """Play the routing's plan of this key, or run the passes and keep the plan."""
    inputs = (
        *tensors, routing.words, routing.thresholds, routing.branch_scale, routing.token_index, base,
        *[target_word(target) for target in targets],
    )  # fmt: skip
    device = routing.device
    pointers, may_replay = pointers_of(inputs)
    plan: Plan | None = routing.plans.get(key) if may_replay else None
    if plan is not None:
        return plan.play(inputs, pointers, device)
    unique = distinct(inputs)
    tape = Tape(unique, num_words=len(targets), device=device)
    outputs = passes(tape, *unique[: len(tensors)])
    if may_replay:
        if len(routing.plans) >= MOST_PLANS:
            routing.plans.clear()
        routing.plans[key] = tape.plan(outputs, kept=layout.config)
    return outputs


def _add_forward(base: FrozenProduct, y: Tensor, x: Tensor) -> None:
    base.add_forward(y, x)


def _add_backward(base: FrozenProduct, dx: Tensor, dy: Tensor) -> None:
    base.add_backward(dx, dy)
