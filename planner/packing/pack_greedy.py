"""Greedy packing of one instance: the samples of one step of an adapter group, into as few bins as greed finds.

Each adapter's share of a bin is rounded up to `pad_multiple`, so a bin keeps its tokens by adapter.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence

from .lower_bounds import martello_toth_bound
from .subset_sum import fullest_subset
from .workload import Workload

Bins = list[list[int]]
_MAX_EXACT_FILL = 256
"""Instances above this many samples are packed best-fit only: exact fills take time with its square, and gain least."""
Pack = Callable[[Workload, Sequence[int]], Bins]
"""Bins of these items of a workload, fullest first."""


def occupied(workload: Workload, items: Sequence[int]) -> int:
    """Room that items take in one bin, each adapter's share rounded up."""
    if workload.pad_multiple == 1:
        return sum(workload.sizes[item] for item in items)
    shares: dict[int, int] = {}
    for item in items:
        adapter = workload.samples[item].adapter
        shares[adapter] = shares.get(adapter, 0) + workload.sizes[item]
    return sum(workload.padded(tokens) for tokens in shares.values())


def best_fit_decreasing(workload: Workload, items: Sequence[int]) -> Bins:
    """Each item in the fullest bin that still takes it, largest items first (ties by item number)."""
    ordered = sorted(items, key=lambda item: (-workload.sizes[item], item))
    if workload.pad_multiple > 1:
        return _fullest_first(workload, _first_fit(workload, ordered))
    bins: Bins = []
    room: list[tuple[int, int]] = []
    for item in ordered:
        size = workload.sizes[item]
        place = bisect_left(room, (size, -1))
        if place < len(room):
            left, number = room.pop(place)
        else:
            left, number = workload.capacity, len(bins)
            bins.append([])
        bins[number].append(item)
        insort(room, (left - size, number))
    return _fullest_first(workload, bins)


def first_fit_decreasing(workload: Workload, items: Sequence[int]) -> Bins:
    """Each item in the first bin that takes it, largest items first: what the published planner starts from."""
    return _fullest_first(workload, _first_fit(workload, sorted(items, key=lambda item: (-workload.sizes[item], item))))


def subset_sum_fill(workload: Workload, items: Sequence[int]) -> Bins:
    """Bin by bin: the largest item left, then the exactly best filling from the others; the last is the emptiest."""
    left = sorted(items, key=lambda item: (-workload.sizes[item], item))
    bins: Bins = []
    while left:
        first = left[0]
        if workload.pad_multiple == 1:
            room = workload.capacity - workload.sizes[first]
            chosen = [first, *fullest_subset(left[1:], sizes=workload.sizes, room=room)]
        else:
            chosen = _fill_padded(workload, left)
        bins.append(chosen)
        gone = set(chosen)
        left = [item for item in left if item not in gone]
    return _fullest_first(workload, bins)


def pack_greedily(workload: Workload, items: Sequence[int]) -> Bins:
    """The better of both greedy packings: fewer bins, then the emptier last one."""
    candidates = [best_fit_decreasing(workload, items)]
    if len(candidates[0]) > 1 and len(items) <= _MAX_EXACT_FILL:
        candidates.append(subset_sum_fill(workload, items))
    return min(candidates, key=lambda bins: (len(bins), occupied(workload, bins[-1])))


def instance_bound(workload: Workload, items: Sequence[int]) -> int:
    """Fewest bins any packing of these items needs, by Martello-Toth L2 and by padded volume."""
    l2 = martello_toth_bound([workload.sizes[item] for item in items], capacity=workload.capacity)
    return max(l2, -(-occupied(workload, items) // workload.capacity))


def _first_fit(workload: Workload, ordered: Sequence[int]) -> Bins:
    bins: Bins = []
    shares: list[dict[int, int]] = []
    loads: list[int] = []
    for item in ordered:
        adapter, size = workload.samples[item].adapter, workload.sizes[item]
        for number, share in enumerate(shares):
            had = share.get(adapter, 0)
            grown = loads[number] + workload.padded(had + size) - workload.padded(had)
            if grown <= workload.capacity:
                break
        else:
            number, had, grown = len(bins), 0, workload.padded(size)
            bins.append([])
            shares.append({})
            loads.append(0)
        bins[number].append(item)
        shares[number][adapter] = had + size
        loads[number] = grown
    return bins


def _fill_padded(workload: Workload, left: Sequence[int]) -> list[int]:
    adapters = dict.fromkeys(workload.samples[item].adapter for item in left)
    room = workload.capacity
    chosen: list[int] = []
    for adapter in adapters:
        own = [item for item in left if workload.samples[item].adapter == adapter]
        share = fullest_subset(own, sizes=workload.sizes, room=room)
        room -= workload.padded(sum(workload.sizes[item] for item in share))
        chosen += share
    return chosen


def _fullest_first(workload: Workload, bins: Bins) -> Bins:
    return sorted(bins, key=lambda items: -occupied(workload, items))
