"""ZB-H1 (arXiv 2401.10241, section 2): 1F1B whose backward is split, with weight gradients filling the drain.

With a frozen base model a weight gradient is that of the adapters alone, almost nothing, so there is almost nothing to
fill with; the schedule is here to show that. Together with recomputation a split backward would recompute twice.
"""

import numpy as np

from ..program import ActionKind
from .flush import one_f_one_b_segment
from .order import StageOrder


def zb_h1_segment(num_slots: int, *, num_stages: int) -> tuple[StageOrder, ...]:
    """Stage s runs the weight part of slot k - s right after the input part of slot k, the last s at the end.

    So every stage keeps num_stages microbatches in flight, as stage 0 does in 1F1B.
    """
    return tuple(
        _split(order, delay=stage) for stage, order in enumerate(one_f_one_b_segment(num_slots, num_stages=num_stages))
    )


def _split(order: StageOrder, *, delay: int) -> StageOrder:
    backwards = np.flatnonzero(order.kind == int(ActionKind.BACKWARD))
    kind = order.kind.copy()
    kind[backwards] = int(ActionKind.BACKWARD_INPUT)
    places = np.append(backwards[delay:] + 1, np.full(min(delay, len(backwards)), len(kind)))
    slots = order.slot[backwards]
    return StageOrder(
        kind=np.insert(kind, places, int(ActionKind.BACKWARD_WEIGHT)),
        slot=np.insert(order.slot, places, slots),
        chunk=np.zeros(len(kind) + len(places), dtype=np.int32),
    )
