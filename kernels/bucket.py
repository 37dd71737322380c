"""Microbatches of one bucket: rows and tables filled up to sizes that they all have in common.

What a host decides of a call - grids, sizes of what is allocated, which kernels run - follows from the bucket alone
then, and what the tables say decides the rest on the device. So a CUDA graph of one microbatch serves them all.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .sizes import ceil_div

if TYPE_CHECKING:
    from .segments import Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """What a microbatch is filled up to."""

    num_rows: int
    """Of every microbatch, padding included: rows behind its last segment, which are nobody's."""
    most_padding: int
    """Rows of padding, at most."""
    most_segments: int

    def num_owned(self, height: int) -> int:
        """Row tiles of at most `height` rows that adapters may need."""
        return (self.num_rows + self.most_segments * (height - 1)) // height

    def num_padded(self, height: int) -> int:
        """The same for the padding."""
        return ceil_div(self.most_padding, height)

    def check(self, num_rows: int, segments: Sequence[Segment]) -> None:
        """Raise `ValueError` where segments, sorted by first row, do not fit."""
        end = segments[-1].end_row if segments else 0
        without_gaps = all(one.end_row == other.first_row for one, other in itertools.pairwise(segments))
        fits = num_rows == self.num_rows and len(segments) <= self.most_segments and num_rows - end <= self.most_padding
        if not fits or not without_gaps or segments[0].first_row != 0:
            raise ValueError(
                f"{len(segments)} segments that end at row {end} of {num_rows} do not fit {self}: give segments from "
                "row 0 on without gaps, as many and as long as it says"
            )
