"""Attention over packed samples: causal inside each sample, nothing between samples.

Registered with transformers' attention interface under a name of our own and without a mask function, so that
transformers builds no mask; the sample lengths come as a keyword argument through the decoder layer.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

PACKED = "loraplex_packed"


def register_attention() -> str:
    """Make packed attention known to transformers (again and again does no harm); returns its name."""
    AttentionInterface.register(PACKED, packed_attention)
    return PACKED


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    sample_lengths: tuple[int, ...],
    scaling: float | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **_unused: Any,
) -> tuple[Tensor, None]:
    """One scaled-dot-product call per sample: `query [1, Hq, T, D]`, `key`, `value [1, Hkv, T, D]` -> `[1, T, Hq, D]`.

    `sample_lengths` adds up to T. `module`, `attention_mask`, `dropout` and further keywords are what transformers
    passes to every implementation; a frozen base has no attention dropout.
    """
    lengths = list(sample_lengths)
    grouped = query.shape[1] != key.shape[1]
    pieces = [
        scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=_window_mask(q.shape[2], sliding_window, q.device),
            is_causal=sliding_window is None or q.shape[2] <= sliding_window,
            scale=scaling,
            enable_gqa=grouped,
        )
        for q, k, v in zip(
            torch.split(query, lengths, dim=2),
            torch.split(key, lengths, dim=2),
            torch.split(value, lengths, dim=2),
            strict=True,
        )
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


def _window_mask(num_tokens: int, window: int | None, device: torch.device) -> Tensor | None:
    # Only samples longer than the window need a mask; it then replaces is_causal. True: may attend.
    if window is None or num_tokens <= window:
        return None
    places = torch.arange(num_tokens, device=device)
    distance = places[:, None] - places[None, :]
    return (distance >= 0) & (distance < window)
