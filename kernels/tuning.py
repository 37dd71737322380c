"""Which block sizes a call runs with."""

from __future__ import annotations

import functools

import torch

from .layout import DEFAULT_CONFIG, KernelConfig


@functools.lru_cache(maxsize=256)
def choose_config(
    device: torch.device, dtype: torch.dtype, *, num_rows: int, width: int, lora_rank: int
) -> KernelConfig:
    """The configuration for this GPU, dtype and shape bucket."""
    return DEFAULT_CONFIG
