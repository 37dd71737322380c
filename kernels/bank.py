"""Adapters' matrices that stay packed between calls, with float32 gradient sums beside them.

A call on lists of matrices (`multi_lora_linears`) packs all of them, and autograd then adds every matrix's gradient by
itself: launches by the thousand in a model of many layers. A bank is packed once; whoever owns the master weights
copies them into its views after each optimizer step, and the backward pass adds into its sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import reference
from .checks import MAX_LORA_RANK, check_banked
from .layout import MAX_TARGETS, padded_rank
from .nf4 import Nf4Weight
from .routing import Routing

if TYPE_CHECKING:
    from .fused_bank import Plans


@dataclass(frozen=True, slots=True, kw_only=True)
class BankViews:
    """One adapter's share of a bank at one target: views, so that writing to them writes to the bank."""

    a: Tensor
    """`[r, K]` in the compute dtype."""
    b: Tensor
    """`[N, r]` in the compute dtype; strided where r is not the bank's padded r."""
    grad_a: Tensor
    """float32 `[r, K]`."""
    grad_b: Tensor
    """float32 `[N, r]`, strided as `b`."""


class AdapterBank:
    """All adapters' matrices of the linears that share one input (q/k/v, gate/up, or one), packed, with gradient sums.

    `lora_ranks[target][adapter]` is that adapter's r at that linear, None where it does not target it. Every pair is
    stored with the largest r, rounded up to a power of two of at least 16; what lies beyond its own r is zero and must
    stay so, which writing through `matrices` respects. Raises `ValueError` on what cannot run as one call.
    """

    def __init__(
        self,
        *,
        in_features: int,
        out_features: Sequence[int],
        lora_ranks: Sequence[Sequence[int | None]],
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        _check_bank(out_features, lora_ranks)
        self.in_features = in_features
        self.out_features = tuple(out_features)
        self.lora_ranks = tuple(tuple(ranks) for ranks in lora_ranks)
        self.padded_rank = padded_rank([r for ranks in self.lora_ranks for r in ranks if r is not None])
        columns = len(self.out_features) * self.padded_rank
        # zeros up to a power of two of rows, so that one tile holds an adapter's A (`Layout.rows_of_a`)
        shape_a = (self.num_adapters, 1 << (columns - 1).bit_length(), in_features)
        shape_b = (self.num_adapters, sum(self.out_features), self.padded_rank)
        self.a = torch.zeros(shape_a, dtype=dtype, device=device)
        self.b = torch.zeros(shape_b, dtype=dtype, device=device)
        self.grad_a = torch.zeros((self.num_adapters, columns, in_features), dtype=torch.float32, device=device)
        self.grad_b = torch.zeros(shape_b, dtype=torch.float32, device=device)
        self.rows_a, self.rows_b = self.a.flatten(0, 1), self.b.flatten(0, 1)
        """The same memory, as the kernels read it."""
        self.anchor = torch.zeros((), dtype=dtype, device=device, requires_grad=True)
        """Stands in for the matrices in autograd's graph where the input wants no gradient; gets none itself."""
        self.plans: Plans | None = None

    @property
    def num_adapters(self) -> int:
        return len(self.lora_ranks[0])

    @property
    def num_targets(self) -> int:
        return len(self.out_features)

    def matrices(self, *, target: int, adapter: int) -> BankViews | None:
        """The views of one pair; None where the adapter does not target this linear."""
        r = self.lora_ranks[target][adapter]
        if r is None:
            return None
        first_row, first_n = target * self.padded_rank, sum(self.out_features[:target])
        rows, outputs = slice(first_row, first_row + r), slice(first_n, first_n + self.out_features[target])
        return BankViews(
            a=self.a[adapter, rows],
            b=self.b[adapter, outputs, :r],
            grad_a=self.grad_a[adapter, rows],
            grad_b=self.grad_b[adapter, outputs, :r],
        )


def zero_gradients(banks: Iterable[AdapterBank], *, adapter: int) -> None:
    """Set one adapter's sums in all these banks to zero, NaN included, in a few launches."""
    torch._foreach_zero_([sums[adapter] for bank in banks for sums in (bank.grad_a, bank.grad_b)])


def banked_linears(
    x: Tensor,
    weights: Sequence[Tensor | Nf4Weight],
    biases: Sequence[Tensor | None],
    bank: AdapterBank,
    *,
    routing: Routing,
    targets: Sequence[int],
) -> Tensor:
    """`multi_lora_linears` with the bank's matrices: `[..., sum of N]`, differentiable in `x` and the biases.

    `routing`'s adapter i is the bank's. The backward pass adds dA and dB of every adapter that owns rows here to the
    bank's float32 sums, in a fixed order; those of other adapters are neither read nor written, and cost nothing. It
    reads the matrices again: they must not change between an adapter's forward and its backward (other adapters' may).
    Fused on a CUDA device; elsewhere the reference on copies of the matrices, slow, with the same effect.
    Raises `ValueError` on arguments that do not fit together.
    """
    check_banked(x, weights, biases, bank, routing=routing, targets=targets)
    if x.device.type == "cuda":
        from .fused_bank import fused_banked_linears

        return fused_banked_linears(x, weights, biases, bank, routing=routing, targets=targets)
    dense = [weight.dequantize() if isinstance(weight, Nf4Weight) else weight for weight in weights]
    owners = {segment.adapter for segment in routing.segments}
    lora_a: list[list[Tensor | None]] = []
    lora_b: list[list[Tensor | None]] = []
    for target in range(bank.num_targets):
        pairs = [
            bank.matrices(target=target, adapter=adapter) if adapter in owners else None
            for adapter in range(bank.num_adapters)
        ]
        lora_a.append([None if pair is None else _summed_leaf(pair.a, pair.grad_a) for pair in pairs])
        lora_b.append([None if pair is None else _summed_leaf(pair.b, pair.grad_b) for pair in pairs])
    return reference.multi_lora_linears(x, dense, biases, lora_a, lora_b, routing=routing, targets=targets)


def _summed_leaf(matrix: Tensor, sums: Tensor) -> Tensor:
    """A copy that takes part in autograd and hands its gradient to `sums`; a copy, since another adapter's step may
    write to the bank before this one's backward."""
    leaf = matrix.clone().requires_grad_()

    def add(grad: Tensor) -> None:
        sums.add_(grad)

    leaf.register_hook(add)  # type: ignore[no-untyped-call]
    return leaf


def _check_bank(out_features: Sequence[int], lora_ranks: Sequence[Sequence[int | None]]) -> None:
    if not 1 <= len(out_features) <= MAX_TARGETS or len(out_features) != len(lora_ranks):
        raise ValueError(
            f"out_features has {len(out_features)} entries, lora_ranks {len(lora_ranks)}: give one for each linear, "
            f"1 to {MAX_TARGETS}"
        )
    counts = [len(ranks) for ranks in lora_ranks]
    if len(set(counts)) != 1 or not counts[0]:
        raise ValueError(
            f"lora_ranks has {counts} adapters at its linears: give every adapter an entry at each, or None"
        )
    present = [r for ranks in lora_ranks for r in ranks if r is not None]
    if not present:
        raise ValueError("lora_ranks holds None alone: make a bank only for linears that an adapter targets")
    for r in present:
        if not 1 <= r <= MAX_LORA_RANK:
            raise ValueError(f"lora_ranks holds r = {r}: r lies between 1 and {MAX_LORA_RANK}")


__all__ = ["AdapterBank", "BankViews", "banked_linears", "zero_gradients"]
