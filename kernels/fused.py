"""From the public op's arguments to one fused call, directly or, while compiling, through the registered operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .autograd import Call, FusedLinear
from .layout import Layout, padded_rank
from .nf4 import Nf4Product, Nf4Weight, joined_nf4
from .passes import DenseProduct, FrozenProduct
from .routing import Routing
from .tiles import as_rows
from .tuning import choose_config


def fused_linears(
    x: Tensor,
    weights: Sequence[Tensor | Nf4Weight],
    biases: Sequence[Tensor | None],
    lora_a: Sequence[Sequence[Tensor | None]],
    lora_b: Sequence[Sequence[Tensor | None]],
    *,
    routing: Routing,
    targets: Sequence[int],
) -> Tensor:
    """`multi_lora_linears` by the Triton kernels; arguments are taken as checked."""
    rows = as_rows(x)
    bias = joined_bias(weights, biases)
    a, b = interleave(lora_a), interleave(lora_b)
    sizes = tuple(weight.shape[0] for weight in weights)
    out_shape = (*x.shape[:-1], sum(sizes))
    present = [matrix for matrix in a if matrix is not None]
    if not present or not routing.segments:
        return frozen_linear(rows, weights, bias).view(out_shape)
    dense = [weight for weight in weights if isinstance(weight, Tensor)]
    if torch.compiler.is_compiling() and len(dense) == len(weights):
        from .library import registered_linears

        return registered_linears(rows, dense, bias, a, b, routing=routing, targets=targets).view(out_shape)
    layout = make_layout(rows, sizes, present, routing=routing)
    call = Call(
        base=frozen_product(weights), layout=layout, routing=routing, targets=tuple(targets),
        grad_dtype=present[0].dtype, num_pairs=len(a),
    )  # fmt: skip
    y: Tensor = FusedLinear.apply(call, rows, bias, *a, *b)  # type: ignore[no-untyped-call]
    return y.view(out_shape)


def make_layout(x: Tensor, sizes: tuple[int, ...], a: Sequence[Tensor], *, routing: Routing) -> Layout:
    """The layout of a call with these N and these A matrices, and the configuration tuned for it."""
    r = padded_rank([matrix.shape[0] for matrix in a])
    return Layout(
        num_adapters=routing.num_adapters,
        num_features=x.shape[1],
        out_features=sizes,
        padded_rank=r,
        config=choose_config(x.device, x.dtype, num_rows=x.shape[0], lora_rank=r, dropout=routing.has_dropout),
    )


def frozen_product(weights: Sequence[Tensor | Nf4Weight]) -> FrozenProduct:
    """Weights as one: dense ones where they lie one after another in memory, NF4 ones always."""
    packed = [weight for weight in weights if isinstance(weight, Nf4Weight)]
    if packed:
        return Nf4Product(weight=joined_nf4(packed))
    dense = [weight for weight in weights if isinstance(weight, Tensor)]
    first = dense[0]
    storage, address = first.untyped_storage().data_ptr(), first.data_ptr()
    for weight in dense:
        # slices of one tensor only: the allocator may well put two tensors side by side, in storages of their own
        of_one = weight.untyped_storage().data_ptr() == storage and weight.dtype == first.dtype
        if not of_one or not weight.is_contiguous() or weight.data_ptr() != address:
            return DenseProduct(weights=tuple(dense))
        address += weight.numel() * weight.element_size()
    num_rows = sum(weight.shape[0] for weight in dense)
    return DenseProduct(weights=(first.detach().as_strided((num_rows, first.shape[1]), (first.shape[1], 1)),))


def frozen_linear(x: Tensor, weights: Sequence[Tensor | Nf4Weight], bias: Tensor | None) -> Tensor:
    """The frozen part alone, for a call in which no adapter takes part."""
    dense = [weight.dequantize() if isinstance(weight, Nf4Weight) else weight for weight in weights]
    y = torch.cat([functional.linear(x, weight) for weight in dense], dim=-1)
    return y if bias is None else (y + bias).to(y.dtype)


def joined_bias(weights: Sequence[Tensor | Nf4Weight], biases: Sequence[Tensor | None]) -> Tensor | None:
    """One bias for all targets, zero where one has none."""
    present = [bias for bias in biases if bias is not None]
    if not present:
        return None
    if len(biases) == 1:
        return present[0].contiguous()
    parts = [
        present[0].new_zeros(weight.shape[0]) if bias is None else bias
        for weight, bias in zip(weights, biases, strict=True)
    ]
    return torch.cat(parts)


def interleave(per_target: Sequence[Sequence[Tensor | None]]) -> list[Tensor | None]:
    """From `[target][adapter]` to one list, adapter by adapter and within it target by target."""
    return [matrix for pair in zip(*per_target, strict=True) for matrix in pair]
