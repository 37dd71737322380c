"""Greedy packing of items into bins of one capacity: best-fit decreasing."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def best_fit_decreasing(items: Sequence[int], *, sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of items, each in the fullest bin that still takes it, largest items first (ties by item number)."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for item in sorted(items, key=lambda item: (-sizes[item], item)):
        place = bisect_left(room, (sizes[item], -1))
        if place < len(room):
            left, number = room.pop(place)
        else:
            left, number = capacity, len(bins)
            bins.append([])
        bins[number].append(item)
        insort(room, (left - sizes[item], number))
    return bins
