"""GPipe (arXiv 1811.06965): all forwards of a segment, then all its backwards."""

import numpy as np

from .order import StageOrder, interleave


def gpipe_segment(num_slots: int, *, num_stages: int) -> tuple[StageOrder, ...]:
    """The same order on every stage; every microbatch of the segment is in flight at once."""
    return (interleave(np.zeros(num_slots, dtype=np.int64)),) * num_stages
