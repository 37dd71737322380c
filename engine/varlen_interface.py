"""Our variable-length attention for models of transformers: `attn_implementation="loraplex_varlen"`.

transformers builds no mask for it. The samples of a microbatch lie one after another in one row, and the model's call
says where: `model(input_ids=..., position_ids=rows.position_ids, packed_rows=rows, use_cache=False)`.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from ..traces.errors import InputError
from .attention import packed_attention
from .batch import PackedRows

VARLEN = "loraplex_varlen"


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
    scaling: float,
    packed_rows: PackedRows | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_unused: Any,
) -> tuple[Tensor, None]:
    """`query [1, Hq, T, D]`, `key`, `value [1, Hkv, T, D]` -> `[1, T, Hq, D]`.

    `packed_rows` comes as a keyword through the model; the rest is what transformers passes to every implementation.
    Raises InputError for what would be computed wrongly: rows that are not packed, and what some models ask of
    attention beside a causal mask and a window.
    """
    if packed_rows is None:
        raise InputError(f"{VARLEN} was not told the samples; call the model with packed_rows=PackedRows.of(lengths)")
    num_rows = sum(packed_rows.sample_lengths)
    if tuple(query.shape[::2]) != (1, num_rows) or key.shape[2] != num_rows:
        raise InputError(
            f"{VARLEN} got {query.shape[0]} rows of {query.shape[2]} tokens, {key.shape[2]} of keys, and packed_rows "
            f"of {num_rows}; pack all samples into one row, and call the model with use_cache=False"
        )
    asked = {"attention_mask": attention_mask, "dropout": dropout or None, "softcap": softcap, "s_aux": s_aux}
    unknown = [name for name, value in asked.items() if value is not None]
    if unknown:
        raise InputError(f"{VARLEN} knows no {', '.join(unknown)}; choose another attn_implementation for this model")
    q, k, v = (heads[0].transpose(0, 1) for heads in (query, key, value))
    return packed_attention(q, k, v, rows=packed_rows, scaling=scaling, window=sliding_window)[None], None
