"""The order of forwards and backwards on one stage, before optimizer steps are placed."""

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

    @classmethod
    def of(cls, rows: list[tuple[ActionKind, int, int]]) -> "StageOrder":
        """From (kind, slot, chunk) rows."""
        table = np.array(rows, dtype=np.int32).reshape(-1, 3)
        kind, slot, chunk = (np.ascontiguousarray(column) for column in table.T)
        return cls(kind=kind, slot=slot, chunk=chunk)


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
