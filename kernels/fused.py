"""From the public op's arguments to one fused call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .autograd import Call, FusedLinear, interleave
from .layout import DEFAULT_CONFIG, Layout, padded_rank
from .passes import DenseProduct
from .routing import Routing


def fused_linears(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    lora_a: Sequence[Sequence[Tensor | None]],
    lora_b: Sequence[Sequence[Tensor | None]],
    *,
    routing: Routing,
    targets: Sequence[int],
) -> Tensor:
    """`multi_lora_linears` by the Triton kernels; arguments are taken as checked."""
    rows = x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    weight = _joined(weights)
    bias = _joined_bias(weights, biases)
    a, b = interleave(lora_a), interleave(lora_b)
    present = [matrix for matrix in a if matrix is not None]
    out_shape = (*x.shape[:-1], sum(w.shape[0] for w in weights))
    if not present or not routing.segments:
        return torch.cat([functional.linear(rows, w) for w in weight], dim=-1).view(out_shape)
    layout = Layout(
        num_adapters=routing.num_adapters,
        num_features=rows.shape[1],
        out_features=tuple(w.shape[0] for w in weights),
        padded_rank=padded_rank([matrix.shape[0] for matrix in present]),
        config=DEFAULT_CONFIG,
    )
    call = Call(
        base=DenseProduct(weights=weight), layout=layout, routing=routing, targets=tuple(targets),
        grad_dtype=present[0].dtype, num_pairs=len(a),
    )  # fmt: skip
    y: Tensor = FusedLinear.apply(call, rows, bias, *a, *b)
    return y.view(out_shape)


def _joined(weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Weights that follow one another in memory as one."""
    first = weights[0]
    address = first.data_ptr()
    for weight in weights:
        if not weight.is_contiguous() or weight.data_ptr() != address or weight.dtype != first.dtype:
            return tuple(weights)
        address += weight.numel() * weight.element_size()
    num_rows = sum(weight.shape[0] for weight in weights)
    return (first.detach().as_strided((num_rows, first.shape[1]), (first.shape[1], 1)),)


def _joined_bias(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor | None:
    if all(bias is None for bias in biases):
        return None
    if len(biases) == 1:
        return biases[0]
    parts = [w.new_zeros(w.shape[0]) if bias is None else bias for w, bias in zip(weights, biases, strict=True)]
    return torch.cat(parts)
