"""FlashAttention-4 in place of torch's own kernels, where its package (the extra `flash`) is installed."""

import functools
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, Final

import torch

from ..traces.errors import InputError
from .environment import asked_by

ATTENTION: Final = "LORAPLEX_ATTENTION"
"""Environment variable that asks for an attention on GPUs."""
CHOICES: Final = ("auto", "torch", "flash")
MEND: Final = "install the extra flash on a machine with a Hopper or Blackwell GPU, or ask for torch or auto"
HEAD_DIMS = (64, 128)
"""Of the models trained here; others stay with torch."""
_MAJORS = (9, 10)
"""Hopper and data-centre Blackwell, for which its kernels were written."""

FlashAttention = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def asked_attention() -> str:
    """auto, torch or flash, as the environment asks; auto where it does not. Raises InputError for another word."""
    return asked_by(ATTENTION, CHOICES) or "auto"


@functools.cache
def flash_attention_4(device: torch.device) -> FlashAttention | None:
    """Its variable-length call for this GPU; None where torch's is to be used.

    Raises InputError where the environment asks for it and it is not installed, or was not written for the GPU.
    """
    asked = asked_attention()
    if asked == "torch":
        return None
    try:
        return _find(device)
    except (LookupError, ImportError) as error:
        if asked == "flash":
            raise InputError(f"{ATTENTION}=flash: {error}; {MEND}") from None
        if isinstance(error, ImportError):
            warnings.warn(f"{error}: torch's attention is used", stacklevel=2)
        return None


def check_attention(device: torch.device) -> None:
    """Raise InputError, before anything is loaded, for an attention that the environment asks for in vain."""
    if asked_attention() == "flash":
        flash_attention_4(device)


def why_no_flash(device: torch.device) -> str | None:
    """Why this GPU cannot have it, whatever the environment asks for; None where it can."""
    try:
        _find(device)
    except (LookupError, ImportError) as error:
        return str(error)
    return None


def _find(device: torch.device) -> FlashAttention:
    major, minor = torch.cuda.get_device_capability(device)
    if major not in _MAJORS:
        raise LookupError(f"FlashAttention-4 was not written for a GPU of compute capability {major}.{minor}")
    if importlib.util.find_spec("flash_attn") is None:
        raise LookupError("FlashAttention-4 is not installed")
    try:
        from flash_attn.cute import flash_attn_varlen_func
    except ImportError as error:
        # FlashAttention-2 is installed under the same name, or a part of its compiler is missing.
        raise ImportError(f"flash_attn has no FlashAttention-4 that works here ({error})") from error
    found: Any = flash_attn_varlen_func
    return found  # type: ignore[no-any-return]
