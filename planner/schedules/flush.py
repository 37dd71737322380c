"""Flushing: the pipeline runs empty before the next global batch, as trainers do that know no dependencies.

A flush ends a segment of slots: where no batch is open, or where the next slot reads a step of a batch that the segment
holds.
"""

from collections.abc import Callable

import numpy as np

from ..dependencies import SlotDependencies
from .order import StageOrder, interleave, joined

Emitter = Callable[[int], tuple[StageOrder, ...]]
"""From a number of slots to the order of every stage, flushed at the end."""


def segments(dependencies: SlotDependencies) -> tuple[int, ...]:
    """Lengths of the segments between flushes, in slots."""
    lengths: list[int] = []
    begin = reach = 0
    for slot, (wait, last) in enumerate(
        zip(dependencies.waits_for.tolist(), dependencies.reaches.tolist(), strict=True)
    ):
        if slot > begin and (wait >= begin or reach < slot):
            lengths.append(slot - begin)
            begin = slot
        reach = max(reach, last)
    rest = dependencies.num_slots() - begin
    return (*lengths, rest) if rest else tuple(lengths)


def flushed(dependencies: SlotDependencies, emitter: Emitter) -> tuple[StageOrder, ...]:
    """What `emitter` makes of every segment, one after the other."""
    lengths = segments(dependencies)
    emitted = {length: emitter(length) for length in {*lengths, 0}}
    begins = np.concatenate([[0], np.cumsum(lengths)]).astype(int).tolist()
    return tuple(
        joined([emitted[length][stage].shifted(begin) for begin, length in zip(begins, (*lengths, 0), strict=True)])
        for stage in range(len(emitted[0]))
    )


def one_f_one_b_segment(num_slots: int, *, num_stages: int) -> tuple[StageOrder, ...]:
    """1F1B over one segment (arXiv 2104.04473, section 2.2): stage s warms up with num_stages - s - 1 forwards."""
    slots = np.arange(num_slots, dtype=np.int64)
    return tuple(interleave(np.maximum(slots - (num_stages - stage) + 1, 0)) for stage in range(num_stages))
