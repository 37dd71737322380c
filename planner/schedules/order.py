"""The order of forwards and backwards on one stage, before optimizer steps are placed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..program import ActionKind

Column = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageOrder:
    """What one stage does with the slots, in order; columns of one length."""

    kind: Column
    slot: Column
    chunk: Column

    def shifted(self, slots: int) -> "StageOrder":
        """The same order, that many slots later."""
        return StageOrder(kind=self.kind, slot=(self.slot + slots).astype(np.int32), chunk=self.chunk)


def joined(orders: Sequence[StageOrder]) -> StageOrder:
    """One order after the other."""
    return StageOrder(
        kind=np.concatenate([order.kind for order in orders]),
        slot=np.concatenate([order.slot for order in orders]),
        chunk=np.concatenate([order.chunk for order in orders]),
    )


def interleave(backwards_before: NDArray[np.int64]) -> StageOrder:
    """Forwards and backwards, each in slot order, where forward j follows that many backwards."""
    num_slots = len(backwards_before)
    slots = np.arange(num_slots, dtype=np.int32)
    places = slots + backwards_before
    kind = np.full(2 * num_slots, int(ActionKind.BACKWARD), dtype=np.int32)
    kind[places] = int(ActionKind.FORWARD)
    slot = np.empty(2 * num_slots, dtype=np.int32)
    slot[places] = slots
    slot[kind == int(ActionKind.BACKWARD)] = slots
    return StageOrder(kind=kind, slot=slot, chunk=np.zeros(2 * num_slots, dtype=np.int32))
