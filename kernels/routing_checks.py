"""What a routing may be made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .segments import Segment


def check_adapters(
    scaling: Sequence[float], dropout: Sequence[float], seeds: Sequence[int], global_batches: Sequence[int]
) -> None:
    """Raise `ValueError` naming the argument and its value, where these do not hold one sensible entry per adapter."""
    lengths = {
        "scaling": len(scaling),
        "dropout": len(dropout),
        "seeds": len(seeds),
        "global_batches": len(global_batches),
    }
    if len(set(lengths.values())) != 1:
        raise ValueError(f"{lengths}: these hold one entry per adapter, so give them equal lengths")
    for adapter, (value, p) in enumerate(zip(scaling, dropout, strict=True)):
        if not math.isfinite(value):
            raise ValueError(f"scaling[{adapter}] = {value} is not finite: give alpha / r or alpha / sqrt(r)")
        if not 0.0 <= p < 1.0:
            raise ValueError(f"dropout[{adapter}] = {p} lies outside [0, 1): give the probability of dropping")


def check_segments(num_rows: int, segments: tuple[Segment, ...], num_adapters: int) -> None:
    """The same for segments sorted by first row."""
    if num_rows < 0:
        raise ValueError(f"num_rows = {num_rows} is negative: give the number of packed tokens")
    end_row = 0
    for segment in segments:
        if not 0 <= segment.adapter < num_adapters:
            raise ValueError(
                f"segments: {segment} names adapter {segment.adapter}, but there are {num_adapters}: "
                "give every adapter its entry in scaling, dropout, seeds and global_batches"
            )
        if segment.num_rows < 1:
            raise ValueError(f"segments: {segment} has no row: leave out the segment of an adapter without tokens")
        if segment.first_row < end_row:
            raise ValueError(f"segments: {segment} begins before row {end_row}, where the one before it ends")
        end_row = segment.end_row
    if end_row > num_rows:
        raise ValueError(f"segments: {segments[-1]} ends at row {end_row}, after num_rows = {num_rows}")
