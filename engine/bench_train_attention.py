"""The best attention a transformers user can plug in for packed samples: one variable-length call, no mask."""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from .attention import packed_attention
from .batch import PackedRows

VARLEN = "loraplex_bench_varlen"


def register_varlen() -> str:
    """Make it known to transformers, without a mask function, so that no mask is built; returns its name."""
    AttentionInterface.register(VARLEN, varlen_attention)
    return VARLEN


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_rows: PackedRows,
    scaling: float,
    **_unused: Any,
) -> tuple[Tensor, None]:
    """`query [1, Hq, T, D]`, `key`, `value [1, Hkv, T, D]` -> `[1, T, Hq, D]`.

    `packed_rows` comes as a keyword through the model; the rest is what transformers passes to every implementation.
    """
    q, k, v = (heads[0].transpose(0, 1) for heads in (query, key, value))
    return packed_attention(q, k, v, rows=packed_rows, scaling=scaling)[None], None
