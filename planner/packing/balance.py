"""With replicas, the microbatches of one slot run side by side; the slowest sets the pace, so they are evened out."""

from collections.abc import Sequence

from .pack_greedy import Bins, occupied
from .workload import Workload


def balance(workload: Workload, bins: Bins, *, cost_of: Sequence[float]) -> Bins:
    """The same slots with their samples dealt anew to the replicas, where that lowers the costliest one.

    `cost_of` is the cost of each item. Longest first to the replica with the least cost so far; where this would
    overfill a microbatch, the slot stays as it is.
    """
    if workload.num_replicas == 1:
        return bins
    out: Bins = []
    for first in range(0, len(bins), workload.num_replicas):
        row = bins[first : first + workload.num_replicas]
        dealt = _deal(workload, [item for items in row for item in items], cost_of=cost_of)
        fits = all(occupied(workload, items) <= workload.capacity for items in dealt)
        out += dealt if fits and _worst(dealt, cost_of) < _worst(row, cost_of) else row
    return out


def _deal(workload: Workload, items: Sequence[int], *, cost_of: Sequence[float]) -> Bins:
    dealt: Bins = [[] for _ in range(workload.num_replicas)]
    costs = [0.0] * workload.num_replicas
    for item in sorted(items, key=lambda item: (-cost_of[item], item)):
        place = costs.index(min(costs))
        dealt[place].append(item)
        costs[place] += cost_of[item]
    return dealt


def _worst(row: Bins, cost_of: Sequence[float]) -> float:
    return max(sum(cost_of[item] for item in items) for items in row)
