"""torch's variable-length attention, called below its Python wrapper, which takes the host longer than the kernel.

`varlen_attn` is a custom operator written in Python around two operators of torch's own. The first of these has its
derivative in C++, so calling it is all there is to do: no Python runs in the backward.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_ARGUMENTS = (
    "query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k",
    "dropout_p", "is_causal", "return_debug_mask",
)  # fmt: skip
_OPTIONS = {"scale", "window_size_left", "window_size_right"}
"""The rest, which differs from torch 2.11 to 2.13, has defaults that ask for nothing."""

Operator = Callable[..., tuple[Tensor, ...]]
_Packed = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int, int]
"""Queries, keys, values, where the samples of queries and of keys end, and the longest of either."""


def torch_attention(
    query: Tensor, key: Tensor, value: Tensor, *, cumulative_lengths: Tensor, longest: int, scaling: float, back: int
) -> Tensor:
    """`query [T, Hq, D]`, `key` and `value [T, Hkv, D]`, half precision on a GPU -> `[T, Hq, D]`.

    Causal inside each sample; a token attends to `back` tokens before it, all of them where it is -1.
    """
    packed = (query, key, value, cumulative_lengths, cumulative_lengths, longest, longest)
    operator = flash_operator()
    if operator is None:
        return _by_the_public_way(packed, scaling=scaling, back=back)
    # As varlen_attn calls it: causal is said by the flag or by the window, never by both.
    return operator(*packed, 0.0, back == -1, False, scale=scaling, window_size_left=back, window_size_right=0)[0]


@functools.cache
def flash_operator() -> Operator | None:
    """The operator below `varlen_attn`; None where this torch has another one than those known (2.11 to 2.13)."""
    found = getattr(getattr(torch.ops.aten, "_flash_attention_forward", None), "default", None)
    return found if found is not None and is_known(found) else None


def is_known(operator: Any) -> bool:
    """Whether it takes what it is given here, and has a derivative. It is no public API: any torch may change it."""
    arguments = operator._schema.arguments
    if tuple(each.name for each in arguments if not each.has_default_value()) != _ARGUMENTS:
        return False
    if not {each.name for each in arguments if each.kwarg_only} >= _OPTIONS or len(operator._schema.returns) != 5:
        return False
    try:
        # The first to ask may be validation, or a layer whose saved tensors a checkpoint counts.
        hooks = torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is)
        with torch.inference_mode(False), torch.enable_grad(), hooks:
            node = _output_of_nothing(operator).grad_fn
    except (RuntimeError, TypeError):
        return False
    # One without a derivative has a node too, which refuses in the backward.
    return node is not None and "FlashAttention" in node.name()


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _output_of_nothing(operator: Operator) -> Tensor:
    # Shapes alone: no kernel runs.
    query, key = (torch.empty(2, heads, 8, device="meta", dtype=torch.bfloat16) for heads in (2, 1))
    lengths = torch.empty(2, device="meta", dtype=torch.int32)
    options = {"scale": 1.0, "window_size_left": -1, "window_size_right": 0}
    return operator(query.requires_grad_(), key, key, lengths, lengths, 2, 2, 0.0, True, False, **options)[0]


def _by_the_public_way(packed: _Packed, *, scaling: float, back: int) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    query, key, *_ = packed
    # torch 2.11 takes grouped heads as they are, later versions want to be told.
    told: dict[str, Any] = {"enable_gqa": True} if _wants_gqa_flag() and query.shape[1] != key.shape[1] else {}
    attended = varlen_attn(*packed, scale=scaling, window_size=(back, 0), **told)
    assert isinstance(attended, Tensor)  # a pair only where more is asked for
    return attended


@functools.cache
def _wants_gqa_flag() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters
