"""A frozen linear whose weight is held in 4 bits (NF4), in place of an ordinary one."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..kernels.nf4 import Nf4Weight


class Nf4Linear(nn.Linear):
    """An `nn.Linear` whose `weight` is an Nf4Weight: `[..., K] -> [..., N]`, dequantised at every call.

    The fused kernels take `weight` as it is. What it holds counts among the module's buffers.
    """

    def __init__(self, weight: Nf4Weight, bias: nn.Parameter | None) -> None:
        # Not nn.Linear's own, which would make a dense weight.
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight: Any = weight
        self.register_parameter("bias", bias)
        self.register_buffer("packed", weight.packed, persistent=False)
        self.register_buffer("absmax", weight.absmax, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The frozen product alone, differentiable in `x`."""
        return _Product.apply(x, self.weight, self.bias)  # type: ignore[no-any-return, no-untyped-call]


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
