"""Attention over packed samples: causal inside each sample, nothing between samples."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .batch import PackedRows
from .flash_attention import HEAD_DIMS, flash_attention_4
from .torch_attention import torch_attention


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, *, rows: PackedRows, scaling: float, window: int | None = None
) -> Tensor:
    """`query [T, Hq, D]`, `key` and `value [T, Hkv, D]` -> `[T, Hq, D]`; `window` tokens back where given.

    One variable-length call on a GPU in half precision (FlashAttention-4's where it is installed, else torch's), one
    call per sample elsewhere.
    """
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _variable_length(query, key, value, rows=rows, scaling=scaling, window=window)
    lengths = list(rows.sample_lengths)
    pieces = [
        _one_sample(q, k, v, scaling=scaling, window=window)
        for q, k, v in zip(
            torch.split(query, lengths), torch.split(key, lengths), torch.split(value, lengths), strict=True
        )
    ]
    return torch.cat(pieces)


def _variable_length(
    query: Tensor, key: Tensor, value: Tensor, *, rows: PackedRows, scaling: float, window: int | None
) -> Tensor:
    # Tokens back; -1: all. A window of w tokens holds the token itself and w - 1 before it.
    back = -1 if window is None or rows.longest <= window else window - 1
    flash = flash_attention_4(query.device) if back == -1 and query.shape[-1] in HEAD_DIMS else None
    if flash is not None:
        output, _ = flash(
            query,
            key,
            value,
            cu_seqlens_q=rows.cumulative_lengths,
            cu_seqlens_k=rows.cumulative_lengths,
            max_seqlen_q=rows.longest,
            max_seqlen_k=rows.longest,
            softmax_scale=scaling,
            causal=True,
        )
        return output
    return torch_attention(
        query,
        key,
        value,
        cumulative_lengths=rows.cumulative_lengths,
        longest=rows.longest,
        scaling=scaling,
        back=back,
    )


def _one_sample(query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int | None) -> Tensor:
    num_tokens = query.shape[0]
    inside = window is None or num_tokens <= window
    attended = scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        key.transpose(0, 1)[None],
        value.transpose(0, 1)[None],
        # Only samples longer than the window need a mask; it then replaces is_causal.
        attn_mask=None if inside else _window_mask(num_tokens, window or num_tokens, query.device),
        is_causal=inside,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended[0].transpose(0, 1)


def _window_mask(num_tokens: int, window: int, device: torch.device) -> Tensor:
    # True: may attend.
    places = torch.arange(num_tokens, device=device)
    distance = places[:, None] - places[None, :]
    return (distance >= 0) & (distance < window)
