"""FlashAttention-4 in place of torch's own kernels, where its package (the extra `flash`) is installed."""

import functools
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch

HEAD_DIMS = (64, 128)
"""Of the models trained here; others stay with torch."""
_MAJORS = (9, 10)
"""Hopper and data-centre Blackwell, for which its kernels were written."""

FlashAttention = Callable[..., tuple[torch.Tensor, torch.Tensor]]


@functools.cache
def flash_attention_4(device: torch.device) -> FlashAttention | None:
    """Its variable-length call for this GPU; None where it is not installed, or was not written for the GPU."""
    if torch.cuda.get_device_capability(device)[0] not in _MAJORS or importlib.util.find_spec("flash_attn") is None:
        return None
    try:
        from flash_attn.cute import flash_attn_varlen_func
    except ImportError as error:
        # FlashAttention-2 is installed under the same name, or a part of its compiler is missing.
        warnings.warn(
            f"flash_attn has no FlashAttention-4 that works here ({error}): torch's attention is used", stacklevel=2
        )
        return None
    found: Any = flash_attn_varlen_func
    return found  # type: ignore[no-any-return]
