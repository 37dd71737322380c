"""Streaming: slot by slot, every adapter whose global batch is open may put samples in.

The longest remaining chain comes first, so that steps follow each other without waiting. Adapters without slack take
as much of a slot as they can; what is left is filled exactly (subset sum) with samples of all the others. No adapter
groups and no solver are needed.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from .lower_bounds import batch_bounds, chain_tails
from .subset_sum import fewest_subset, fullest_subset
from .workload import Workload

_MAX_POOL = 192
"""Samples looked at when a slot is filled; bounds the time of one slot."""
_MAX_SAVING_POOL = 96
"""The same where few large samples are sought, which takes longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPolicy:
    """How one sweep trades full slots against short chains."""

    margin_slots: int
    """Adapters with at most this slack take all of a slot that they can fill."""
    tolerance: float = 0.0
    """Share of the capacity that may stay empty when that saves small samples for later."""
    max_count: int = 0
    """Most samples of such a saving choice; 0 never looks for one."""


def stream(
    workload: Workload,
    *,
    policy: StreamPolicy,
    bounds: Sequence[Sequence[int]] | None = None,
    ready: Sequence[int] | None = None,
    due: Sequence[int] | None = None,
    offsets: Sequence[int] | None = None,
) -> list[list[int]]:
    """Bins of items in order of entry, `num_replicas` a slot; the same input gives the same bins.

    `bounds` are `batch_bounds` where the caller has them, `ready` the first slot each adapter may enter (default 0),
    `due` the slot each adapter should end by (default: all as early as the whole), `offsets` slots added to that where
    adapters are ranked: another stagger of adapters that are otherwise alike.
    """
    sweep = _Sweep(
        workload, policy=policy, bounds=bounds or batch_bounds(workload), ready=ready, due=due, offsets=offsets
    )
    while sweep.unfinished():
        sweep.take_slot()
    return sweep.bins


class _Sweep:
    """The state of one sweep: what each adapter still has to place, and since when it may."""

    def __init__(
        self,
        workload: Workload,
        *,
        policy: StreamPolicy,
        bounds: Sequence[Sequence[int]],
        ready: Sequence[int] | None,
        due: Sequence[int] | None,
        offsets: Sequence[int] | None,
    ) -> None:
        count = len(workload.chains)
        self.workload = workload
        self.sizes = workload.sizes
        self.policy = policy
        self.tolerance = int(policy.tolerance * workload.capacity)
        self.tails = [chain_tails(chain, gap_slots=workload.gap_slots) for chain in bounds]
        self.due = due
        self.offsets = offsets
        self.step = [0] * count
        self.waiting: list[list[int]] = [[] for _ in range(count)]
        self.total = sum(workload.sizes)
        self.open: list[tuple[int, int]] = []
        self.closed = sorted((slot, adapter) for adapter, slot in enumerate(ready or [0] * count))
        self.slot = 0
        self.check_slack_at = 0
        self.bins: list[list[int]] = []

    def unfinished(self) -> bool:
        return bool(self.open or self.closed)

    def take_slot(self) -> None:
        """Open what is ready, fill one slot, close what is complete."""
        if not self.open:
            self.slot = max(self.slot, self.closed[0][0])
        while self.closed and self.closed[0][0] <= self.slot:
            adapter = self.closed.pop(0)[1]
            items = self.workload.chains[adapter][self.step[adapter]]
            self.waiting[adapter] = sorted(items, key=lambda item: (-self.sizes[item], item))
            insort(self.open, (self._priority(adapter), adapter))
        urgent = self._urgent()
        for _ in range(self.workload.num_replicas):
            self.bins.append(self._fill_bin(urgent))
        self.slot += 1

    def _priority(self, adapter: int) -> int:
        wish = (self.due[adapter] if self.due else 0) + (self.offsets[adapter] if self.offsets else 0)
        return wish - self.tails[adapter][self.step[adapter]]

    def _urgent(self) -> set[int]:
        """Open adapters whose slack is used up. Slack shrinks by at most one a slot: no need to look in every one."""
        if self.slot < self.check_slack_at:
            return set()
        ends = {adapter: self.slot + self._remaining(adapter) for _, adapter in self.open}
        for slot, adapter in self.closed:
            ends[adapter] = slot + self.tails[adapter][self.step[adapter]]
        room = self.workload.capacity * self.workload.num_replicas
        whole = max(self.slot - (-self.total // room), max(ends.values()))
        slack = {adapter: (self.due[adapter] if self.due else whole) - end for adapter, end in ends.items()}
        self.check_slack_at = self.slot + max(1, min(slack.values()) - self.policy.margin_slots)
        return {adapter for _, adapter in self.open if slack[adapter] <= self.policy.margin_slots}

    def _remaining(self, adapter: int) -> int:
        """Slots that an open adapter needs at least, from now to its end."""
        capacity, replicas = self.workload.capacity, self.workload.num_replicas
        volume, large = 0, 0
        for item in self.waiting[adapter]:
            volume += self.sizes[item]
            large += 2 * self.sizes[item] > capacity
        own = max(-(-volume // (capacity * replicas)), -(-large // replicas))
        after = self.tails[adapter][self.step[adapter] + 1]
        return own + (self.workload.gap_slots - 1 + after if after else 0)

    def _fill_bin(self, urgent: set[int]) -> list[int]:
        room = self.workload.capacity
        taken: list[int] = []
        shared: set[int] = set()
        for _, adapter in [entry for entry in self.open if entry[1] in urgent]:
            share = fullest_subset(self.waiting[adapter], sizes=self.sizes, room=self._room_of(room))
            room -= self._take(adapter, share)
            taken += share
            shared.add(adapter)
        if self.workload.pad_multiple > 1:
            # Each adapter's share is rounded up, so the rest is filled adapter by adapter.
            for _, adapter in [entry for entry in self.open if entry[1] not in shared]:
                share = fullest_subset(self.waiting[adapter], sizes=self.sizes, room=self._room_of(room))
                room -= self._take(adapter, share)
                taken += share
            return taken
        pool = self._pool(room)
        first = pool[:1] if not taken else []
        chosen = first + self._choose(pool[len(first) :], room=room - sum(self.sizes[item] for item in first))
        by_adapter: dict[int, list[int]] = {}
        for item in chosen:
            by_adapter.setdefault(self.workload.samples[item].adapter, []).append(item)
        for adapter, share in by_adapter.items():
            self._take(adapter, share)
        return taken + chosen

    def _room_of(self, room: int) -> int:
        return room // self.workload.pad_multiple * self.workload.pad_multiple

    def _pool(self, room: int) -> list[int]:
        """Samples of open adapters that fit, most pressing adapter first, largest sample first."""
        pool: list[int] = []
        for _, adapter in self.open:
            waiting = self.waiting[adapter]
            if waiting and self.sizes[waiting[-1]] <= room:
                pool += [item for item in waiting if self.sizes[item] <= room]
                if len(pool) >= _MAX_POOL:
                    return pool[:_MAX_POOL]
        return pool

    def _choose(self, pool: list[int], *, room: int) -> list[int]:
        count = self.policy.max_count
        if count and pool and room * len(pool) <= (count + 1) * sum(self.sizes[item] for item in pool):
            few = pool[:_MAX_SAVING_POOL]
            saving = fewest_subset(few, sizes=self.sizes, room=room, tolerance=self.tolerance, max_count=count)
            if saving is not None:
                return saving
        return fullest_subset(pool, sizes=self.sizes, room=room)

    def _take(self, adapter: int, share: list[int]) -> int:
        """Remove a share from what waits; close the batch when it is complete. Returns the room it occupies."""
        if not share:
            return 0
        tokens = sum(self.sizes[item] for item in share)
        self.total -= tokens
        gone = set(share)
        self.waiting[adapter] = [item for item in self.waiting[adapter] if item not in gone]
        if not self.waiting[adapter]:
            del self.open[bisect_left(self.open, (self._priority(adapter), adapter))]
            self.step[adapter] += 1
            if self.step[adapter] < len(self.workload.chains[adapter]):
                insort(self.closed, (self.slot + self.workload.gap_slots, adapter))
        return self.workload.padded(tokens)
