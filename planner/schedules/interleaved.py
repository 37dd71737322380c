"""Interleaved 1F1B (arXiv 2104.04473, section 2.2): every stage holds several chunks of layers.

The bubble shrinks by the number of chunks, transfers multiply by it. Slots go round in rounds of at least num_stages:
a round passes through all chunks before the next begins. Where slots do not divide evenly, rounds differ by one (the
published order asks for a multiple of num_stages).
"""

from itertools import accumulate

import numpy as np

from ..program import ActionKind
from .order import StageOrder


def interleaved_segment(num_slots: int, *, num_stages: int, num_chunks: int) -> tuple[StageOrder, ...]:
    """Stage s warms up with 2 (num_stages - s - 1) + (num_chunks - 1) * round forwards, then one forward, one backward.

    Stages form a ring: receives must be posted more than one action ahead, or stages that send in a circle stand still.
    """
    rounds = _rounds(num_slots, num_stages)
    forwards = [
        (slot, chunk) for first, size in rounds for chunk in range(num_chunks) for slot in range(first, first + size)
    ]
    backwards = [
        (slot, chunk)
        for first, size in rounds
        for chunk in reversed(range(num_chunks))
        for slot in range(first, first + size)
    ]
    largest = max((size for _, size in rounds), default=0)
    places = np.arange(len(forwards))
    orders = []
    for stage in range(num_stages):
        warmup = 2 * (num_stages - stage - 1) + (num_chunks - 1) * largest
        forward_places = places + np.maximum(places - warmup, 0)
        rows = np.empty((2 * len(forwards), 3), dtype=np.int32)
        is_forward = np.zeros(len(rows), dtype=bool)
        is_forward[forward_places] = True
        rows[is_forward] = [(int(ActionKind.FORWARD), *row) for row in forwards] or np.empty((0, 3))
        rows[~is_forward] = [(int(ActionKind.BACKWARD), *row) for row in backwards] or np.empty((0, 3))
        kind, slot, chunk = (np.ascontiguousarray(column) for column in rows.T)
        orders.append(StageOrder(kind=kind, slot=slot, chunk=chunk))
    return tuple(orders)


def _rounds(num_slots: int, num_stages: int) -> list[tuple[int, int]]:
    # (first slot, slots) of each round, as even as possible.
    if not num_slots:
        return []
    count = max(1, num_slots // num_stages)
    share, rest = divmod(num_slots, count)
    sizes = [share + (number < rest) for number in range(count)]
    return list(zip(accumulate([0, *sizes[:-1]]), sizes, strict=True))
