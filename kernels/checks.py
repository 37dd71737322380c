"""Argument checks of the public ops: attribute reads only, so they cost nothing beside a launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import rows
from .layout import MAX_TARGETS
from .nf4 import Nf4Weight
from .routing import Routing

if TYPE_CHECKING:
    from torch import Tensor

    from .bank import AdapterBank

MAX_LORA_RANK = 256


def check_linear(
    x: Tensor,
    weight: Tensor | Nf4Weight,
    bias: Tensor | None,
    lora_a: Sequence[Tensor | None],
    lora_b: Sequence[Tensor | None],
    *,
    routing: Routing,
) -> None:
    """Raise `ValueError` naming the argument that does not fit, its value, and what would."""
    check_frozen(x, weight, bias, routing=routing)
    n, k = weight.shape
    if not len(lora_a) == len(lora_b) == routing.num_adapters:
        raise ValueError(
            f"lora_a has {len(lora_a)} and lora_b {len(lora_b)} entries, but routing has {routing.num_adapters} "
            "adapters: give one entry per adapter, None where it does not target this linear"
        )
    for adapter, (a, b) in enumerate(zip(lora_a, lora_b, strict=True)):
        if a is not None and b is not None:
            _check_pair(adapter, a, b, n=n, k=k, x=x)
        elif a is not b:
            raise ValueError(f"lora_a[{adapter}] or lora_b[{adapter}] is None and the other is not: give both or none")


def check_frozen(x: Tensor, weight: Tensor | Nf4Weight, bias: Tensor | None, *, routing: Routing) -> None:
    """Raise `ValueError` unless input, frozen linear and routing fit together."""
    if weight.ndim != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}: give [N, K]")
    n, k = weight.shape
    if x.ndim < 1 or x.shape[-1] != k:
        raise ValueError(f"x has shape {tuple(x.shape)}, but weight is {n} x {k}: the last dimension of x must be {k}")
    if x.numel() != routing.num_rows * k:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, that is {x.numel() // max(k, 1)} rows, but routing has "
            f"{routing.num_rows}: build the routing for this microbatch"
        )
    if not x.is_floating_point():
        raise ValueError(f"x has dtype {x.dtype}: give a floating dtype")
    if weight.dtype != x.dtype:
        raise ValueError(f"weight has dtype {weight.dtype}, but x has {x.dtype}: cast one of them")
    if weight.device != x.device or routing.device != x.device:
        raise ValueError(
            f"x is on {x.device}, weight on {weight.device}, routing on {routing.device}: move them to one device"
        )
    if not isinstance(weight, Nf4Weight):
        rows.check_frozen(weight, "weight")
    if bias is not None and (bias.shape != (n,) or bias.device != x.device):
        raise ValueError(f"bias has shape {tuple(bias.shape)} on {bias.device}: give [{n}] on {x.device}")
    if bias is not None and not bias.is_floating_point():
        raise ValueError(f"bias has dtype {bias.dtype}: give a floating dtype")


def check_targets(
    weights: Sequence[Tensor | Nf4Weight],
    biases: Sequence[Tensor | None],
    lora_a: Sequence[object],
    lora_b: Sequence[object],
    targets: Sequence[int],
) -> None:
    """Raise `ValueError` unless every list has one entry per target and the targets can run as one call."""
    lengths = {
        "weights": len(weights), "biases": len(biases), "lora_a": len(lora_a), "lora_b": len(lora_b),
        "targets": len(targets),
    }  # fmt: skip
    if len(set(lengths.values())) != 1:
        raise ValueError(f"{lengths}: these hold one entry per linear, so give them equal lengths")
    if not 1 <= len(weights) <= MAX_TARGETS:
        raise ValueError(f"weights has {len(weights)} entries: one call serves 1 to {MAX_TARGETS} linears")
    for target in targets:
        if not isinstance(target, int):
            raise ValueError(f"target is {target!r}, a {type(target).__name__}: give the id of the linear, an int")
    if len({isinstance(weight, Nf4Weight) for weight in weights}) > 1:
        raise ValueError("weights holds NF4 and dense weights: give all of one call in one form")


def check_banked(
    x: Tensor,
    weights: Sequence[Tensor | Nf4Weight],
    biases: Sequence[Tensor | None],
    bank: AdapterBank,
    *,
    routing: Routing,
    targets: Sequence[int],
) -> None:
    """Raise `ValueError` unless the frozen linears are those that the bank was made for."""
    check_targets(weights, biases, bank.lora_ranks, bank.lora_ranks, targets)
    for weight, bias, n in zip(weights, biases, bank.out_features, strict=True):
        if weight.shape != (n, bank.in_features):
            raise ValueError(
                f"weight has shape {tuple(weight.shape)}, but the bank was made for {n} x {bank.in_features}: "
                "make a bank of this shape"
            )
        check_frozen(x, weight, bias, routing=routing)
    if routing.num_adapters != bank.num_adapters:
        raise ValueError(
            f"routing has {routing.num_adapters} adapters, but the bank {bank.num_adapters}: number them alike"
        )
    if x.dtype != bank.a.dtype or x.device != bank.a.device:
        raise ValueError(
            f"x has dtype {x.dtype} on {x.device}, but the bank {bank.a.dtype} on {bank.a.device}: make the bank in "
            "the compute dtype, on its device"
        )


def _check_pair(adapter: int, a: Tensor, b: Tensor, *, n: int, k: int, x: Tensor) -> None:
    if a.ndim != 2 or a.shape[1] != k:
        raise ValueError(f"lora_a[{adapter}] has shape {tuple(a.shape)}: give [r, {k}]")
    lora_rank = a.shape[0]
    if not 1 <= lora_rank <= MAX_LORA_RANK:
        raise ValueError(f"lora_a[{adapter}] has r = {lora_rank}: r lies between 1 and {MAX_LORA_RANK}")
    if b.shape != (n, lora_rank):
        raise ValueError(f"lora_b[{adapter}] has shape {tuple(b.shape)}: give [{n}, {lora_rank}]")
    if not a.is_floating_point() or a.dtype != b.dtype:
        raise ValueError(f"lora_a[{adapter}] has dtype {a.dtype}, lora_b[{adapter}] {b.dtype}: give one floating dtype")
    if a.device != x.device or b.device != x.device:
        raise ValueError(
            f"lora_a[{adapter}] is on {a.device}, lora_b[{adapter}] on {b.device}, x on {x.device}: move them to one"
        )
