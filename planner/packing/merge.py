"""Merging: after packing, microbatches are emptied into their neighbours, across groups, wholly or sample by sample.

A move is taken only where the spacing holds on both sides of it: after the step before and before the step after, with
the emptied microbatch already left out.
"""

from collections.abc import Sequence

from .pack_greedy import Bins, occupied
from .workload import Workload

_REACH = 12
"""Neighbours looked at on each side."""


def merge(workload: Workload, bins: Bins, *, reach: int = _REACH) -> Bins:
    """Bins of the same items, in order, never more of them and never more slots; single replica order.

    Bins are seen as one stream: with replicas, `rows` cuts the result into slots.
    """
    merger = _Merger(workload, [list(items) for items in bins if items], reach=reach)
    for here in range(len(merger.bins)):
        merger.visit(here)
    merged = [items for items in merger.bins if items]
    return merged if workload.num_slots(merged) <= workload.num_slots(bins) else [list(items) for items in bins]


def rows(workload: Workload, bins: Sequence[Sequence[int]]) -> Bins:
    """Cut a stream of bins into slots of `num_replicas`, with empty bins where dependents must not share a slot."""
    if workload.num_replicas == 1:
        return [list(items) for items in bins]
    out: Bins = []
    steps: dict[int, int] = {}
    for items in bins:
        own = {workload.samples[item].adapter: workload.samples[item].global_batch for item in items}
        if len(out) % workload.num_replicas == 0 or any(steps.get(a, step) != step for a, step in own.items()):
            out += [[]] * (-len(out) % workload.num_replicas)
            steps = {}
        out.append(list(items))
        steps.update(own)
    return out + [[]] * (-len(out) % workload.num_replicas)


class _Merger:
    """A pass from the first bin to the last. Bins keep their numbers; `position` leaves the emptied ones out."""

    def __init__(self, workload: Workload, bins: Bins, *, reach: int) -> None:
        self.workload = workload
        self.bins = bins
        self.reach = reach
        self.gap = workload.gap_slots * workload.num_replicas
        self.loads = [occupied(workload, items) for items in bins]
        self.bin_of = {item: number for number, items in enumerate(bins) for item in items}
        self.spans = [[self._span(items) for items in chain] for chain in workload.chains]
        self.passed = [0] * len(workload.chains)
        self.before: list[int] = []
        self.num_emptied = 0
        self.here = 0

    def visit(self, here: int) -> None:
        """Empty this bin if its neighbours can take all of it."""
        self.here = here
        self.before.append(here - self.num_emptied)
        items = sorted(self.bins[here], key=lambda item: (-self.workload.sizes[item], item))
        window = [
            number
            for number in range(max(0, here - self.reach), min(len(self.bins), here + self.reach + 1))
            if number != here and self.bins[number]
        ]
        if sum(self.workload.capacity - self.loads[number] for number in window) < self.loads[here]:
            return
        moved: list[int] = []
        for item in items:
            if not self._move(item, window):
                break
            moved.append(item)
        if len(moved) == len(items) and self._spaced():
            self.num_emptied += 1
        else:
            for item in moved:
                self._put(item, here)

    def position(self, number: int) -> int:
        """Place in the stream of a bin that is not empty, once the bin visited now is left out."""
        if number < self.here:
            return self.before[number]
        return number - self.num_emptied - 1

    def _move(self, item: int, window: Sequence[int]) -> bool:
        roomiest_last = sorted(window, key=lambda number: (-self.loads[number], number))
        for number in roomiest_last:
            if self._fits(item, number) and self._may(item, number):
                self._put(item, number)
                return True
        return False

    def _fits(self, item: int, number: int) -> bool:
        if self.loads[number] + self.workload.sizes[item] > self.workload.capacity:
            return False
        return (
            self.workload.pad_multiple == 1
            or occupied(self.workload, [*self.bins[number], item]) <= self.workload.capacity
        )

    def _may(self, item: int, number: int) -> bool:
        """Whether one step an adapter holds in that bin, and its distance to the steps before and after."""
        sample = self.workload.samples[item]
        for other in self.bins[number]:
            if self.workload.samples[other].adapter == sample.adapter:
                return self.workload.samples[other].global_batch == sample.global_batch
        spans = self.spans[sample.adapter]
        first, last = self._span(
            [
                other
                for other in self.workload.chains[sample.adapter][sample.global_batch]
                if self.bin_of[other] != self.here
            ]
            or [item]
        )
        if first <= number <= last:
            return True
        step = sample.global_batch
        place = self.position(number)
        after_last = step == 0 or place - self.position(spans[step - 1][1]) >= self.gap
        before_next = step + 1 == len(spans) or self.position(spans[step + 1][0]) - place >= self.gap
        return after_last and before_next

    def _spaced(self) -> bool:
        """Whether no wait across the emptied bin became too short."""
        for adapter, spans in enumerate(self.spans):
            step = self.passed[adapter]
            while step + 1 < len(spans) and spans[step][1] <= self.here:
                step += 1
            self.passed[adapter] = step = max(0, step - 1)
            for early in range(step, min(step + 2, len(spans) - 1)):
                last, first = spans[early][1], spans[early + 1][0]
                if last < self.here < first and self.position(first) - self.position(last) < self.gap:
                    return False
        return True

    def _put(self, item: int, number: int) -> None:
        sample = self.workload.samples[item]
        source = self.bin_of[item]
        self.bins[source].remove(item)
        self.bins[number].append(item)
        self.bin_of[item] = number
        for changed in (source, number):
            self.loads[changed] = occupied(self.workload, self.bins[changed])
        step = sample.global_batch
        self.spans[sample.adapter][step] = self._span(self.workload.chains[sample.adapter][step])

    def _span(self, items: Sequence[int]) -> tuple[int, int]:
        numbers = [self.bin_of[item] for item in items]
        return min(numbers), max(numbers)
