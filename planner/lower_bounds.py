"""Lower bounds on the slots of any plan: volume, Martello-Toth L2, and the chain of dependent steps."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .workload import Workload


def volume_bound(sizes: Sequence[int], *, capacity: int) -> int:
    """Bins that hold the total."""
    return -(-sum(sizes) // capacity)


def martello_toth_bound(sizes: Sequence[int] | NDArray[np.int64], *, capacity: int) -> int:
    """L2 (Martello and Toth, Knapsack Problems, 1990, section 8.3.2): at least the volume bound.

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


def chain_bound(bounds: Sequence[Sequence[int]], *, num_stages: int) -> int:
    """Slots of the longest chain: each batch its own, and num_stages - 1 between the steps of an adapter."""
    return max(sum(chain) + (len(chain) - 1) * (num_stages - 1) for chain in bounds)


def padded_volume(workload: Workload) -> int:
    """Tokens all batches occupy at least, each padded once."""
    return sum(
        workload.padded(sum(workload.sizes[item] for item in items)) for chain in workload.chains for items in chain
    )


def lower_bound_slots(workload: Workload) -> int:
    """No plan of this workload takes fewer slots."""
    room = workload.capacity * workload.num_replicas
    return max(
        -(-padded_volume(workload) // room),
        -(-martello_toth_bound(workload.sizes, capacity=workload.capacity) // workload.num_replicas),
        chain_bound(batch_bounds(workload), num_stages=workload.num_stages),
    )
