"""Sizes in whole numbers, on the host.

Triton's own `cdiv` and `next_power_of_2` serve kernels too, and take 2 us a call (2026-11-26).
"""

from __future__ import annotations

ALIGNMENT_BYTES = 16
"""Kernels are compiled for addresses, and for numbers, that are multiples of it or are not."""


def ceil_div(value: int, by: int) -> int:
    """How many times `by` covers `value`."""
    return -(-value // by)


def round_up(value: int, to: int) -> int:
    """The least multiple of `to` that is at least `value`."""
    return ceil_div(value, to) * to


def next_power_of_2(value: int) -> int:
    """The least power of two that is at least `value`, itself at least 1."""
    return 1 << (value - 1).bit_length()
