"""Linears of one decoder layer that share their input, with every adapter's LoRA matrices beside them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as plain_linear

from ..kernels.bank import AdapterBank, banked_linears
from ..kernels.gated_linear import banked_gated_linears
from ..kernels.multi_lora import multi_lora_linears
from ..kernels.routing import Routing
from ..kernels.swiglu import swiglu
from .nf4_linear import Nf4Linear, join_nf4_linears
from .recompute import remade


class LinearGroup:
    """q, k and v, or gate and up, or one linear alone: one pass over the shared input gives all their outputs.

    An adapter's dropout draws one mask for the group: it drops features of the shared input. `lora_a[t][a]` is adapter
    a's matrix `[r, K]` at linear t, None where it does not target it; insert_adapters.py puts them there.
    """

    def __init__(self, names: Sequence[str], linears: Sequence[nn.Linear]) -> None:
        self.names = tuple(names)
        """As in the whole model."""
        self.linears = tuple(linears)
        self.mask_id = 0
        """Part of dropout's key, the same for all linears of the group and different for every group of a model."""
        self.lora_a: list[list[Tensor | None]] = [[] for _ in linears]
        self.lora_b: list[list[Tensor | None]] = [[] for _ in linears]
        self.bank: AdapterBank | None = None
        """The same matrices packed, on a GPU: read in their place."""
        self._joined = _join(self.linears)
        self._joined_bias = _joined_bias(self.linears) if self._joined is not None else None

    def is_frozen(self) -> bool:
        """Whether no adapter targets any of the linears."""
        return all(matrix is None for matrices in self.lora_a for matrix in matrices)

    def __call__(self, x: Tensor, routing: Routing | None) -> Tensor:
        """`x [T, K]` -> outputs side by side `[T, sum of N]`, the rows with their adapters as `routing` says."""
        # A bank is there for adapters only, so that they need not be looked through at every call.
        if self.bank is None and self.is_frozen():
            if self._joined is not None:
                return plain_linear(x, self._joined, self._joined_bias)
            # Each by its own forward: one in 4 bits keeps no dense weight for the backward.
            outputs = [linear(x) for linear in self.linears]
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        if routing is None:
            raise RuntimeError(f"{self.names[0]} was called without a routing; give the microbatch's")
        weights, biases, masks = self._frozen()
        if self.bank is not None:
            return banked_linears(x, weights, biases, self.bank, routing=routing, targets=masks)
        return multi_lora_linears(x, weights, biases, self.lora_a, self.lora_b, routing=routing, targets=masks)

    def of_gated(self, gate_up: Tensor, routing: Routing | None) -> Tensor:
        """The same of SwiGLU's product of `gate_up [T, 2 K]`, which is made again in the backward and not kept."""
        if self.bank is not None and routing is not None:
            weights, biases, masks = self._frozen()
            return banked_gated_linears(gate_up, weights, biases, self.bank, routing=routing, targets=masks)
        product = swiglu(gate_up)
        kept = gate_up.detach()
        with remade(product, lambda: swiglu(kept)):
            return self(product, routing)

    def _frozen(self) -> tuple[list[Tensor], list[Tensor | None], list[int]]:
        # Weights, biases and dropout masks of the linears, as the kernels take them.
        weights = [linear.weight for linear in self.linears]
        return weights, [linear.bias for linear in self.linears], [self.mask_id] * len(weights)


def _joined_bias(linears: Sequence[nn.Linear]) -> Tensor | None:
    if all(linear.bias is None for linear in linears):
        return None
    return torch.cat(
        [linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias for linear in linears]
    )


def _join(linears: Sequence[nn.Linear]) -> Tensor | None:
    # One matrix whose slices the weights become, where they are several and dense: multiplied as one.
    packed = [linear for linear in linears if isinstance(linear, Nf4Linear)]
    if len(packed) == len(linears):
        join_nf4_linears(packed)
    if packed or len(linears) == 1 or linears[0].weight.is_meta:
        return None
    joined = torch.cat([linear.weight.data for linear in linears])
    sizes = [linear.weight.shape[0] for linear in linears]
    for linear, rows in zip(linears, torch.split(joined, sizes), strict=True):
        linear.weight.data = rows
    return joined
