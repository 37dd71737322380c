"""The public ops: they check their arguments and choose between the fused kernels and the reference."""

from __future__ import annotations

from .reference import multi_lora_linear, multi_lora_linears

__all__ = ["multi_lora_linear", "multi_lora_linears"]
