"""Continuous 1F1B: one forward, one backward in turn over the whole run, never flushed, without dummy microbatches.

1F1B is arXiv 2104.04473 (section 2.2). What is ours: the stream goes on over the global batches of all adapters, and
where a forward must wait for an optimizer step, the rules below say what runs meanwhile.
"""

import numpy as np

from ..dependencies import SlotDependencies, slot_numbers
from .order import StageOrder, interleave


def slot_rule(dependencies: SlotDependencies, *, num_stages: int, wide: bool = False) -> tuple[StageOrder, ...]:
    """Backward i precedes forward j on stage s if and only if slot(i) <= slot(j) - width(s).

    width(s) = num_stages - s, the microbatches in flight there. With `wide`, 2 (num_stages - s) - 1: warming up twice
    as far hides transfers of up to half a forward and backward, for nearly twice the activations.
    Slots are `slot_numbers` with the gap width(0); empty ones cost nothing, nobody runs a dummy.
    """
    widths = [2 * (num_stages - stage) - 1 if wide else num_stages - stage for stage in range(num_stages)]
    slots = np.array(slot_numbers(dependencies.waits_for, gap=widths[0]), dtype=np.int64)
    return tuple(interleave(np.searchsorted(slots, slots - width, side="right").astype(np.int64)) for width in widths)


def greedy_rule(dependencies: SlotDependencies, *, num_stages: int) -> tuple[StageOrder, ...]:
    """Forward whenever fewer than num_stages - s are in flight on stage s and nothing is awaited, else backward.

    At equal costs never better than the slot rule and up to 21 % worse, since it fills up too eagerly after a drain;
    at uneven costs sometimes better. The recurrence picks (build_program.py).
    """
    slots = np.arange(dependencies.num_slots(), dtype=np.int64)
    return tuple(
        interleave(
            np.maximum.accumulate(
                np.maximum(np.maximum(slots - (num_stages - stage) + 1, dependencies.waits_for + 1), 0)
            )
            if len(slots)
            else slots
        )
        for stage in range(num_stages)
    )
