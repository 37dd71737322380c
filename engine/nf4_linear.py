"""A frozen linear whose weight is held in 4 bits (NF4), in place of an ordinary one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..kernels.nf4 import Nf4Weight, joined_nf4, split_nf4


class Nf4Linear(nn.Linear):
    """An `nn.Linear` whose `weight` is an Nf4Weight: `[..., K] -> [..., N]`, dequantised at every call.

    The fused kernels take `weight` as it is. What it holds counts among the module's buffers.
    """

    def __init__(self, weight: Nf4Weight, bias: nn.Parameter | None) -> None:
        # Not nn.Linear's own, which would make a dense weight.
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.register_parameter("bias", bias)
        self.hold(weight)

    def hold(self, weight: Nf4Weight) -> None:
        """Take a weight of the same shape in place of its own."""
        self.weight: Any = weight
        self.register_buffer("packed", weight.packed, persistent=False)
        self.register_buffer("absmax", weight.absmax, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The frozen product alone, differentiable in `x`."""
        return _Product.apply(x, self.weight, self.bias)  # type: ignore[no-any-return, no-untyped-call]


def join_nf4_linears(linears: Sequence[Nf4Linear]) -> None:
    """Let linears with one input hold slices of one weight, so that the kernels multiply them as one."""
    joined = joined_nf4([one.weight for one in linears])
    for one, part in zip(linears, split_nf4(joined, [one.out_features for one in linears]), strict=True):
        one.hold(part)


class _Product(torch.autograd.Function):
    # Keeps the four bits for the backward, not the dense weight, which autograd would.

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Nf4Weight, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return linear(x, weight.dequantize(), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (dy,) = grads
        return torch.matmul(dy, ctx.weight.dequantize()), None, None


def held_bytes(module: nn.Module) -> int:
    """Bytes of everything a frozen module holds: parameters, and the 4-bit weights among its buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
