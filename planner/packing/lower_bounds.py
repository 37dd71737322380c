"""Lower bounds on the slots of any plan: volume, Martello-Toth L2, the chain of dependent steps, and both together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .workload import Workload

_MAX_HEADS = 256
"""Heads tried by `window_bound`; more only cost time (any choice is a valid bound)."""


def martello_toth_bound(sizes: Sequence[int] | NDArray[np.int64], *, capacity: int) -> int:
    """L2 (Martello and Toth, Knapsack Problems, 1990, section 8.3.2): at least the bins that hold the total.

    For a threshold t <= capacity / 2, items above capacity - t sit alone, those above capacity / 2 sit apart, and those
    of at least t fill only the gaps that the latter leave.
    """
    ordered = np.sort(np.asarray(sizes, dtype=np.int64))
    if not len(ordered):
        return 0
    total = np.concatenate(([0], np.cumsum(ordered)))
    thresholds = np.unique(np.concatenate(([0], ordered[2 * ordered <= capacity])))
    half = int(np.searchsorted(ordered, capacity // 2, side="right"))
    alone = np.searchsorted(ordered, capacity - thresholds, side="right")
    first = np.searchsorted(ordered, thresholds, side="left")
    gaps = (alone - half) * capacity - (total[alone] - total[half])
    excess = np.maximum(total[half] - total[np.minimum(first, half)] - gaps, 0)
    return int((len(ordered) - half + -(-excess // capacity)).max())


def batch_bounds(workload: Workload) -> tuple[tuple[int, ...], ...]:
    """Fewest slots of each global batch alone, by adapter and step."""
    return tuple(
        tuple(
            -(
                -martello_toth_bound([workload.sizes[item] for item in items], capacity=workload.capacity)
                // workload.num_replicas
            )
            for items in chain
        )
        for chain in workload.chains
    )


def chain_tails(bounds: Sequence[int], *, gap_slots: int) -> list[int]:
    """Slots from the start of each step to the end of its chain; one entry more, 0, for the end itself."""
    tails = [0] * (len(bounds) + 1)
    for step in reversed(range(len(bounds))):
        tails[step] = bounds[step] + (gap_slots - 1 + tails[step + 1] if step + 1 < len(bounds) else 0)
    return tails


def chain_bound(bounds: Sequence[Sequence[int]], *, gap_slots: int) -> int:
    """Slots of the longest chain: each batch its own, and gap_slots - 1 between the steps of an adapter."""
    return max(chain_tails(chain, gap_slots=gap_slots)[0] for chain in bounds)


def window_bound(workload: Workload, bounds: Sequence[Sequence[int]]) -> int:
    """Chain and volume together: batches that start no sooner than h and leave t slots after them share the rest.

    For every such set, h + its bins + t slots are needed (the head-body-tail bound of one-machine scheduling, Carlier
    1982, with bodies packed). Bins count as volume or as samples above half the capacity, whichever is more.
    """
    room = workload.capacity * workload.num_replicas
    rows = []
    for chain, own in zip(workload.chains, bounds, strict=True):
        tails = chain_tails(own, gap_slots=workload.gap_slots)
        for step, items in enumerate(chain):
            head = tails[0] - tails[step]
            after = tails[step] - own[step]
            volume = workload.padded(sum(workload.sizes[item] for item in items))
            large = sum(2 * workload.sizes[item] > workload.capacity for item in items)
            rows.append((head, after, volume, large))
    table = np.array(rows, dtype=np.int64)
    table = table[np.argsort(-table[:, 1], kind="stable")]
    heads = np.unique(table[:, 0])
    best = 0
    for head in heads[:: max(1, len(heads) // _MAX_HEADS)]:
        late = table[table[:, 0] >= head]
        slots = np.maximum(-(-np.cumsum(late[:, 2]) // room), -(-np.cumsum(late[:, 3]) // workload.num_replicas))
        best = max(best, int((head + slots + late[:, 1]).max()))
    return best


def padded_volume(workload: Workload) -> int:
    """Tokens all batches occupy at least, each padded once."""
    return sum(
        workload.padded(sum(workload.sizes[item] for item in items)) for chain in workload.chains for items in chain
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerBounds:
    """Slots that no plan of a workload can do without, by argument."""

    volume: int
    martello_toth: int
    chain: int
    window: int

    def slots(self) -> int:
        """The strongest of them."""
        return max(self.volume, self.martello_toth, self.chain, self.window)


def lower_bounds(workload: Workload, *, bounds: Sequence[Sequence[int]] | None = None) -> LowerBounds:
    """All bounds of a workload. `bounds` are `batch_bounds` where the caller has them."""
    room = workload.capacity * workload.num_replicas
    bounds = bounds or batch_bounds(workload)
    return LowerBounds(
        volume=-(-padded_volume(workload) // room),
        martello_toth=-(-martello_toth_bound(workload.sizes, capacity=workload.capacity) // workload.num_replicas),
        chain=chain_bound(bounds, gap_slots=workload.gap_slots),
        window=window_bound(workload, bounds),
    )
