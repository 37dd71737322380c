"""Exact subset sums on big integers: bit t of a number says that some of the items seen so far add up to t.

Shifting and or-ing a 16,384-bit integer takes Python well under a microsecond, so that a microbatch is filled exactly
in some tens of microseconds without compiled code.
"""

from collections.abc import Sequence


def fullest_subset(items: Sequence[int], *, sizes: Sequence[int], room: int) -> list[int]:
    """Items with the largest sum that fits in `room`; among those, items that stand early in the order.

    Everything when everything fits. Items larger than the room are passed over.
    """
    fitting = [item for item in items if sizes[item] <= room]
    if sum([sizes[item] for item in fitting]) <= room:
        return fitting
    mask = (2 << room) - 1
    reached = 1
    before: list[int] = []
    for item in fitting:
        before.append(reached)
        reached |= (reached << sizes[item]) & mask
        if reached >> room:
            break
    target = reached.bit_length() - 1
    chosen = []
    for place in range(len(before) - 1, -1, -1):
        if not target:
            break
        # Without this item the target was out of reach: it belongs to the answer.
        if not before[place] >> target & 1:
            chosen.append(fitting[place])
            target -= sizes[fitting[place]]
    return chosen


def fewest_subset(
    items: Sequence[int], *, sizes: Sequence[int], room: int, tolerance: int, max_count: int
) -> list[int] | None:
    """The fewest items, at most `max_count`, that fill `room` up to `tolerance`; None where no such set exists.

    Few items means large ones: the small ones, which fit anywhere, are kept for later.
    """
    fitting = [item for item in items if sizes[item] <= room]
    lengths = [sizes[item] for item in fitting]
    mask = (2 << room) - 1
    # levels[count][place]: sums of exactly `count` of the items before that place.
    levels: list[list[int]] = [[1] * len(fitting)]
    for _ in range(max_count):
        below, reached, level = levels[-1], 0, []
        for place, length in enumerate(lengths):
            level.append(reached)
            reached |= (below[place] << length) & mask
        levels.append(level)
        target = reached.bit_length() - 1
        if reached and target >= room - tolerance:
            return _recover(fitting, sizes=sizes, levels=levels, target=target)
    return None


def _recover(items: Sequence[int], *, sizes: Sequence[int], levels: Sequence[Sequence[int]], target: int) -> list[int]:
    chosen = []
    count = len(levels) - 1
    for place in range(len(items) - 1, -1, -1):
        if not count:
            break
        if not levels[count][place] >> target & 1:
            chosen.append(items[place])
            target -= sizes[items[place]]
            count -= 1
    return chosen
