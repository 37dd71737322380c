"""The backward of a linear whose input is SwiGLU's product: the product is made again behind its own gradient.

Kept for the backward, the product is the largest activation of a layer; made again by SwiGLU's forward, it costs three
passes over memory (gate, up, the product itself). SwiGLU's backward reads gate and up anyway, so there it costs one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import Layout
from .passes import FrozenProduct, Pair, backward_passes, kind, play
from .routing import Routing
from .swiglu_kernel import backward_pass, forward_pass
from .tape import Tape


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedInput:
    """`passes.LateInput`: the product of gate and up, whose gradient goes to gate and up."""

    gate_up: Tensor
    dgate_up: Tensor | None
    """Room for it `[T, 2 I]`; None where nobody wants it."""

    def make(self, tape: Tape, x: Tensor) -> None:
        forward_pass(tape, self.gate_up, x)

    def pass_on(self, tape: Tape, dx: Tensor, x: Tensor | None) -> None:
        assert self.dgate_up is not None, "without it nobody asks for dx"
        backward_pass(tape, dx, self.gate_up, self.dgate_up, x)


def run_gated_backward(
    dy: Tensor, gate_up: Tensor, s: Tensor, base: FrozenProduct, a: Tensor, b: Tensor, sums: Pair,
    *, layout: Layout, routing: Routing, targets: Sequence[int], needs_input: bool,
) -> Tensor | None:  # fmt: skip
    """dgate_up `[T, 2 I]`, or None unless `needs_input`; dA and dB are added to `sums`."""
    weight = base.whole_weight() if needs_input else None
    key = (
        "gated backward", *kind(gate_up, weight, layout=layout, routing=routing, targets=targets),
        dy.stride(0), needs_input,
    )  # fmt: skip

    def passes(
        tape: Tape, dy: Tensor, gate_up: Tensor, s: Tensor, weight: Tensor | None, a: Tensor, b: Tensor,
        sum_a: Tensor, sum_b: Tensor,
    ) -> tuple[Tensor | None]:  # fmt: skip
        product = tape.empty((gate_up.shape[0], layout.num_features), gate_up.dtype)
        dgate_up = tape.empty(tuple(gate_up.shape), gate_up.dtype) if needs_input else None
        backward_passes(
            tape, dy, product, s, base, weight, a, b, layout=layout, routing=routing, targets=targets,
            grad_dtype=torch.float32, needs_dx=needs_input, beside=False, sums=(sum_a, sum_b),
            late=GatedInput(gate_up=gate_up, dgate_up=dgate_up),
        )  # fmt: skip
        return (dgate_up,)

    inputs = (dy, gate_up, s, weight, a, b, *sums)
    dgate_up: Tensor | None
    (dgate_up,) = play(key, passes, inputs, base, layout=layout, routing=routing, targets=targets)
    return dgate_up
