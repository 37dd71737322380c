"""The public ops: they check their arguments and choose between the fused kernels and the reference."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import reference
from .checks import check_linear, check_targets
from .nf4 import Nf4Weight
from .routing import Routing, Segment


def multi_lora_linear(
    x: Tensor,
    weight: Tensor | Nf4Weight,
    bias: Tensor | None,
    lora_a: Sequence[Tensor | None],
    lora_b: Sequence[Tensor | None],
    *,
    routing: Routing,
    target: int,
) -> Tensor:
    """`x W^T + bias + scaling[a] * dropout(x) A_a^T B_a^T`, each row with its own adapter a. Returns `[..., N]`.

    `x [..., K]` packed tokens, their rows as `routing` says; `weight [N, K]` frozen, dense or NF4; `bias [N]`; per
    adapter `lora_a[a] [r_a, K]` and `lora_b[a] [N, r_a]`, None where the adapter does not target this linear; `target`
    the id of this linear, part of dropout's key. Fused on a CUDA device (an adapter without rows gets a zero gradient),
    the reference elsewhere (it gets none). Raises `ValueError` on arguments that do not fit together.
    """
    return multi_lora_linears(x, [weight], [bias], [lora_a], [lora_b], routing=routing, targets=[target])


def multi_lora_linears(
    x: Tensor,
    weights: Sequence[Tensor | Nf4Weight],
    biases: Sequence[Tensor | None],
    lora_a: Sequence[Sequence[Tensor | None]],
    lora_b: Sequence[Sequence[Tensor | None]],
    *,
    routing: Routing,
    targets: Sequence[int],
) -> Tensor:
    """Several linears in one pass over their shared input, outputs side by side: `[..., sum of N]`.

    `lora_a[t][a]` is adapter a's matrix at linear t. Linears with the same entry in `targets` share one dropout mask
    (one draw serves them all); others draw their own. Weights that lie one after another in memory, as slices of one
    tensor do, are multiplied as one.
    """
    check_targets(weights, biases, lora_a, lora_b, targets)
    for weight, bias, a, b in zip(weights, biases, lora_a, lora_b, strict=True):
        check_linear(x, weight, bias, a, b, routing=routing)
    if x.device.type == "cuda":
        from .fused import fused_linears

        return fused_linears(x, weights, biases, lora_a, lora_b, routing=routing, targets=targets)
    dense = [weight.dequantize() if isinstance(weight, Nf4Weight) else weight for weight in weights]
    return reference.multi_lora_linears(x, dense, biases, lora_a, lora_b, routing=routing, targets=targets)


def lora_linear(
    x: Tensor,
    weight: Tensor | Nf4Weight,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    *,
    scaling: float,
    dropout: float = 0.0,
    seed: int = 0,
    global_batch: int = 0,
    target: int = 0,
) -> Tensor:
    """The one-adapter case of `multi_lora_linear`: every row belongs to the same adapter."""
    num_rows = x.numel() // x.shape[-1]
    routing = Routing.build(
        num_rows=num_rows,
        segments=[Segment(first_row=0, num_rows=num_rows, adapter=0)] if num_rows else [],
        scaling=[scaling],
        dropout=[dropout],
        seeds=[seed],
        global_batches=[global_batch],
        device=x.device,
    )
    return multi_lora_linear(x, weight, bias, [lora_a], [lora_b], routing=routing, target=target)


__all__ = ["lora_linear", "multi_lora_linear", "multi_lora_linears"]
