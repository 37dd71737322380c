"""The multi-LoRA linear in plain PyTorch: the oracle of every kernel test, and what runs where there is no GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .checks import check_linear
from .routing import Routing, Segment, dropout_threshold, folded_words
from .sizes import ceil_div

FEATURES_PER_BLOCK = 128
"""Features f and f + 64 of each block of 128 share a word, so a kernel masks two 64-wide tiles with one draw."""

# The two multipliers of the 32-bit mixer "lowbias32" (C. Wellons, hash-prospector, public domain), as signed numbers.
_MULTIPLY_1 = 0x7FEB352D
_MULTIPLY_2 = 0x846CA68B - (1 << 32)
_GOLDEN = 0x9E3779B9


def multi_lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Sequence[Tensor | None],
    lora_b: Sequence[Tensor | None],
    *,
    routing: Routing,
    target: int,
) -> Tensor:
    """`x W^T + bias + scaling[a] * dropout(x) A_a^T B_a^T`, each row with its own adapter a. Returns `[..., N]`.

    `x [..., K]`, `weight [N, K]`, `bias [N]`, per adapter `lora_a[a] [r_a, K]` and `lora_b[a] [N, r_a]`, or None for
    an adapter that does not target this linear. Any floating dtype, any device. As in PEFT, the LoRA branch is computed
    in the adapter's dtype and the sum is returned in that of `x`. An adapter that owns no row here takes no part:
    its gradient stays None. Every segment is a product of its own, so NaN stays with its adapter.
    """
    return _linear(x, weight, bias, lora_a, lora_b, routing=routing, target=target, dropped={})


Dropped = dict[tuple[int, int, torch.dtype], Tensor]
"""Inputs behind dropout by (first row of the segment, target, dtype): linears that share a mask share them."""


def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Sequence[Tensor | None],
    lora_b: Sequence[Tensor | None],
    *,
    routing: Routing,
    target: int,
    dropped: Dropped,
) -> Tensor:
    check_linear(x, weight, bias, lora_a, lora_b, routing=routing)
    rows = x.reshape(-1, x.shape[-1])
    if bias is None or bias.dtype == rows.dtype:
        base = functional.linear(rows, weight, bias)
    else:
        base = (functional.linear(rows, weight) + bias).to(rows.dtype)
    pieces: list[Tensor] = []
    row = 0
    for segment in routing.segments:
        a, b = lora_a[segment.adapter], lora_b[segment.adapter]
        if a is None or b is None:
            continue
        if segment.first_row > row:
            pieces.append(base[row : segment.first_row])
        own = slice(segment.first_row, segment.end_row)
        key = segment.first_row, target, a.dtype
        if key not in dropped:
            dropped[key] = _drop(rows[own].to(a.dtype), routing=routing, segment=segment, target=target)
        delta = functional.linear(functional.linear(dropped[key], a), b) * routing.scaling[segment.adapter]
        pieces.append((base[own] + delta).to(base.dtype))
        row = segment.end_row
    if row < routing.num_rows:
        pieces.append(base[row:])
    out = pieces[0] if len(pieces) == 1 else torch.cat(pieces) if pieces else base
    return out.reshape(*x.shape[:-1], weight.shape[0])


def multi_lora_linears(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    lora_a: Sequence[Sequence[Tensor | None]],
    lora_b: Sequence[Sequence[Tensor | None]],
    *,
    routing: Routing,
    targets: Sequence[int],
) -> Tensor:
    """Several linears over one input, their outputs side by side: `[..., sum of N]`.

    `lora_a[t][a]` is adapter a's matrix at linear t. Linears that are given the same entry in `targets` share one
    dropout mask, others draw their own.
    """
    dropped: Dropped = {}
    outputs = [
        _linear(x, weight, bias, a, b, routing=routing, target=target, dropped=dropped)
        for weight, bias, a, b, target in zip(weights, biases, lora_a, lora_b, targets, strict=True)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


def dropout_mask(
    *, seed: int, global_batch: int, target: int, token_index: Tensor, num_features: int, dropout: float
) -> Tensor:
    """The features that are kept, bool `[rows, num_features]`: the same bits that the fused kernels draw.

    Depends on nothing but (seed, global_batch, target, token index, feature): not on the cut into microbatches, the
    neighbours, the stage or the dtype.
    """
    words = torch.from_numpy(folded_words([seed], [global_batch])[0]).to(token_index.device)
    return _draw(words, target, token_index.to(torch.int32), num_features, dropout_threshold(dropout))


def _drop(x: Tensor, *, routing: Routing, segment: Segment, target: int) -> Tensor:
    """`dropout(x)` of one segment's rows `[rows, K]`."""
    p = routing.dropout[segment.adapter]
    if p == 0.0:
        return x
    index = routing.token_index[segment.first_row : segment.end_row]
    keep = _draw(routing.words[segment.adapter], target, index, x.shape[-1], dropout_threshold(p))
    return torch.where(keep, x, 0.0) / (1.0 - p)


def _draw(words: Tensor, target: int, token_index: Tensor, num_features: int, threshold: int) -> Tensor:
    """bool `[rows, num_features]` from two adapter words; int32 arithmetic wraps, as it does on the GPU."""
    half = FEATURES_PER_BLOCK // 2
    num_blocks = ceil_div(num_features, FEATURES_PER_BLOCK)
    target_word = _signed(target * _GOLDEN + 0x7F4A7C15)
    row_key_0 = _mix(_mix(token_index ^ words[0]) + target_word)
    row_key_1 = _mix(_mix(token_index + words[1]) ^ target_word)
    pair = torch.arange(num_blocks * half, dtype=torch.int32, device=token_index.device) * _signed(_GOLDEN)
    # [rows, num_blocks * 64]
    word = row_key_0[:, None] + pair[None, :]
    word ^= (word >> 16) & 0xFFFF
    word *= _MULTIPLY_1
    word ^= (word >> 15) & 0x1FFFF
    word ^= row_key_1[:, None]
    word *= _MULTIPLY_2
    word ^= (word >> 16) & 0xFFFF
    # [rows, num_blocks, 64]
    word = word.view(-1, num_blocks, half)
    # [rows, num_blocks, 2, 64]
    keep = torch.stack(((word & 0xFFFF) >= threshold, ((word >> 16) & 0xFFFF) >= threshold), dim=2)
    return keep.view(-1, num_blocks * FEATURES_PER_BLOCK)[:, :num_features]


def _mix(word: Tensor) -> Tensor:
    """lowbias32: every input bit flips every output bit with a probability near one half."""
    word = (word ^ ((word >> 16) & 0xFFFF)) * _MULTIPLY_1
    word = (word ^ ((word >> 15) & 0x1FFFF)) * _MULTIPLY_2
    return word ^ ((word >> 16) & 0xFFFF)


def _signed(word: int) -> int:
    """The low 32 bits as a signed number."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word
