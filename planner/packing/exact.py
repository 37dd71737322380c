"""The fewest slots, proved, for small workloads: slot by slot, every filling that leaves no sample out that fits.

Entering earlier never hurts a sample or what waits for it, so fillings that could take one more need not be tried. Used
on small instances, where it also tells whether a gap is the plan's fault or the bound's.
"""

from collections.abc import Iterator, Sequence

from .lower_bounds import chain_tails
from .pack_greedy import Bins, occupied
from .workload import Workload

_State = tuple[tuple[tuple[int, ...], int, int], ...]
"""Per adapter: items left of its open step, the step, slots until it may enter."""


def fewest_slots(
    workload: Workload, *, bounds: Sequence[Sequence[int]], at_least: int, below: int, max_nodes: int
) -> tuple[Bins | None, bool]:
    """Bins that take fewer than `below` slots, as few as possible, and whether the answer is proved.

    (None, True) says that no plan takes fewer than `below`. `at_least` is a lower bound; one replica only.
    """
    search = _Search(workload, bounds=bounds, max_nodes=max_nodes)
    for target in range(at_least, below):
        bins = search.within(target)
        if bins is not None or search.nodes_left <= 0:
            return bins, bins is not None
    return None, True


class _Search:
    """Depth-first search for a plan within a number of slots, remembering states that cannot make it."""

    def __init__(self, workload: Workload, *, bounds: Sequence[Sequence[int]], max_nodes: int) -> None:
        self.workload = workload
        self.tails = [chain_tails(chain, gap_slots=workload.gap_slots) for chain in bounds]
        self.nodes_left = max_nodes
        self.failed: dict[_State, int] = {}

    def within(self, target: int) -> Bins | None:
        """Bins of a plan of at most `target` slots, or None."""
        start = tuple((chain[0], 0, 0) for chain in self.workload.chains)
        return self._finish(start, target)

    def _finish(self, state: _State, slots_left: int) -> Bins | None:
        if not any(items for items, _, _ in state):
            return []
        if self.failed.get(state, -1) >= slots_left or not self._may_finish(state, slots_left):
            return None
        self.nodes_left -= 1
        if self.nodes_left < 0:
            return None
        opened = [item for items, _, wait in state if wait == 0 for item in items]
        for chosen in self._fillings(opened) if opened else [()]:
            rest = self._finish(self._after(state, chosen), slots_left - 1)
            if rest is not None:
                return [list(chosen), *rest] if chosen else rest
        if self.nodes_left >= 0:
            self.failed[state] = slots_left
        return None

    def _may_finish(self, state: _State, slots_left: int) -> bool:
        volume = 0
        for (items, step, wait), tails, chain in zip(state, self.tails, self.workload.chains, strict=True):
            if not items:
                continue
            own = sum(self.workload.sizes[item] for item in items)
            volume += own + sum(self.workload.sizes[item] for later in chain[step + 1 :] for item in later)
            after = self.workload.gap_slots - 1 + tails[step + 1] if step + 1 < len(chain) else 0
            if wait + -(-own // self.workload.capacity) + after > slots_left:
                return False
        return volume <= slots_left * self.workload.capacity

    def _fillings(self, opened: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Sets of open items that fit and to which no other can be added; equal samples of a step count once."""
        ordered = sorted(opened, key=lambda item: (-self.workload.sizes[item], item))
        seen: set[tuple[tuple[int, int], ...]] = set()
        for chosen in self._subsets(ordered, 0, ()):
            rest = [item for item in ordered if item not in chosen]
            if any(occupied(self.workload, [*chosen, item]) <= self.workload.capacity for item in rest):
                continue
            samples = self.workload.samples
            kind = tuple(sorted((samples[item].adapter, self.workload.sizes[item]) for item in chosen))
            if kind not in seen:
                seen.add(kind)
                yield chosen

    def _subsets(self, ordered: Sequence[int], place: int, chosen: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if place == len(ordered):
            if chosen:
                yield chosen
            return
        grown = (*chosen, ordered[place])
        if occupied(self.workload, grown) <= self.workload.capacity:
            yield from self._subsets(ordered, place + 1, grown)
        yield from self._subsets(ordered, place + 1, chosen)

    def _after(self, state: _State, chosen: Sequence[int]) -> _State:
        """The state one slot later."""
        gone = set(chosen)
        following = []
        for (items, step, wait), chain in zip(state, self.workload.chains, strict=True):
            left = tuple(item for item in items if item not in gone)
            if items and not left and step + 1 < len(chain):
                following.append((chain[step + 1], step + 1, self.workload.gap_slots - 1))
            else:
                following.append((left, step, max(0, wait - 1)))
        return tuple(following)
