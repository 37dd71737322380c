"""The replay itself, in SimPy: one process a worker, a clock, and an event only where a worker is really blocked.

Kept lean on purpose. A message is an arrival time in a list; whoever comes later than that goes on at once, and whoever
comes earlier folds the wait into the sleep of its own work. A worker whose message has not even been sent leaves it to
the sender to set its alarm for the end of the work behind. Every worker has one alarm for all its sleeps. That is one
event an action, none of them made anew, instead of 7 with a store and a process per message.
"""

from array import array
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from ..planner.costing import ProgramCosts
from ..planner.recurrence import Completion

Pauses = Sequence[tuple[float, float]]
"""Stretches (from, to) in ms, in order and disjoint, in which a worker does nothing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Channels:
    """Ways out and in that carry one message at a time, first come, first served; a message takes both at once."""

    leaves: NDArray[np.int64]
    """For each action the number of the way out that its message takes; -1: nobody else uses it at the same time."""
    enters: NDArray[np.int64]
    """The way in at the receiver's; it may be the same as the way out (a bus)."""
    latency_ms: NDArray[np.float64]
    """For each action the part of its transfer in which the message is under way but both are free again."""


def replay(
    costs: ProgramCosts, *, channels: Channels | None = None, pauses: Sequence[Pauses] | None = None
) -> Completion:
    """Run every worker through its actions. `channels` makes links contend; `pauses` has one entry a worker."""
    return _Replay(costs, channels=channels, pauses=pauses).run()


class _Alarm(simpy.Event):
    """The alarm clock of one worker, who sleeps on one thing at a time and sets it anew for each sleep.

    Either the worker sets it itself, for the end of its work, or it leaves to the sender of a message that it awaits to
    set it for the end of the work behind: no event is made for either, where SimPy makes a Timeout each.
    """

    def __init__(self, env: simpy.Environment) -> None:
        super().__init__(env)
        self._ok, self._value = True, None
        self.free_ms = 0.0
        """Since when the sleeper is free: its work begins no sooner, however early the message comes."""
        self.work_ms = 0.0
        """What it sleeps through after that."""


class _Replay:
    """The state that the workers' processes share."""

    def __init__(self, costs: ProgramCosts, *, channels: Channels | None, pauses: Sequence[Pauses] | None) -> None:
        graph = costs.graph
        num_actions = graph.num_actions()
        self._env = simpy.Environment()
        self._bounds = graph.offsets.tolist()
        self._sender = array("i", graph.sender.tobytes())
        self._extra_first = graph.extra_first.tolist()
        self._has_extras = graph.has_extras.tobytes()
        self._extra_action = graph.extra_action.tolist()
        self._extra_ms = costs.extra_ms.tolist()
        self._duration = array("d", costs.duration_ms.tobytes())
        self._transfer = array("d", costs.transfer_ms.tobytes())
        self._blocking = costs.blocking
        self._channels = channels
        self._busy_until: dict[int, float] = {}
        self._pauses = pauses
        # Packed, since a million boxed numbers fall out of every cache.
        self._start, self._end, self._arrival = (array("d", [-1.0]) * num_actions for _ in range(3))
        self._alarms: list[_Alarm | None] = [None] * num_actions
        self._announced: dict[int, simpy.Event] = {}
        """Actions whose end others wait for without a message."""

    def run(self) -> Completion:
        for worker in range(len(self._bounds) - 1):
            self._env.process(self._work(worker))
        self._env.run()
        return Completion(
            start_ms=np.array(self._start), end_ms=np.array(self._end), arrival_ms=np.array(self._arrival)
        )

    def _work(self, worker: int) -> Generator[simpy.Event, Any, None]:
        env, starts, ends, arrivals, alarms = self._env, self._start, self._end, self._arrival, self._alarms
        contended, blocking, announced = self._channels is not None, self._blocking, self._announced
        pauses = self._pauses[worker] if self._pauses else ()
        own, schedule, normal = _Alarm(env), env.schedule, simpy.events.NORMAL
        first, last = self._bounds[worker], self._bounds[worker + 1]
        # `now` follows the clock without asking it: asking costs as much as the rest of an action.
        free = now = 0.0
        for action, awaited, duration, transfer, has_extras in zip(
            range(first, last),
            self._sender[first:last],
            self._duration[first:last],
            self._transfer[first:last],
            self._has_extras[first:last],
            strict=True,
        ):
            start = free
            if awaited >= 0:
                arrival = arrivals[awaited]
                if arrival < 0.0:
                    # Not even sent: sleep through the work too, where nothing else can hold it up.
                    work = 0.0 if has_extras or pauses else duration
                    own.free_ms, own.work_ms = free, work
                    own.callbacks = []
                    alarms[awaited] = own
                    yield own
                    arrival = arrivals[awaited]
                    now = (arrival if arrival > free else free) + work
                if arrival > start:
                    start = arrival
            if has_extras:
                further = yield from self._further_waits(action)
                start, now = max(start, further), max(now, env.now)
            end = start + duration
            if pauses:
                start, end = stretched(start, duration, pauses)
            if end > now:
                own.callbacks = []
                schedule(own, normal, end - now)
                yield own
                now = end
            starts[action] = start
            ends[action] = free = end
            if transfer > 0.0:
                end = self._carried(action, end, transfer) if contended else end + transfer
                if blocking:
                    free = end
            arrivals[action] = end
            waiting = alarms[action]
            if waiting is not None:
                begin = end if end > waiting.free_ms else waiting.free_ms
                schedule(waiting, normal, max(begin + waiting.work_ms - now, 0.0))
            if announced and action in announced:
                announced.pop(action).succeed()

    def _further_waits(self, action: int) -> Generator[simpy.Event, Any, float]:
        # Sleeps until all that has ended; says when the last word of it is there.
        latest = 0.0
        for place in range(self._extra_first[action], self._extra_first[action + 1]):
            other = self._extra_action[place]
            if self._end[other] < 0.0:
                if other not in self._announced:
                    self._announced[other] = simpy.Event(self._env)
                yield self._announced[other]
            latest = max(latest, self._end[other] + self._extra_ms[place])
        return latest

    def _carried(self, action: int, end: float, transfer: float) -> float:
        assert self._channels is not None
        latency, busy = float(self._channels.latency_ms[action]), self._busy_until
        leaves, enters = int(self._channels.leaves[action]), int(self._channels.enters[action])
        # Processes come here in order of time, so the first to come is the first served.
        begin = max(end, busy.get(leaves, 0.0), busy.get(enters, 0.0))
        # A way that nobody shares is never busy.
        busy |= {way: begin + transfer - latency for way in (leaves, enters) if way >= 0}
        return begin + transfer


def stretched(start: float, duration: float, pauses: Pauses) -> tuple[float, float]:
    """When work that could start then really starts and ends, if nothing is done during the pauses."""
    end = start
    rest = duration
    begun = False
    for begin, finish in pauses:
        if finish <= end:
            continue
        if begin > end:
            done = min(rest, begin - end)
            begun = begun or done > 0.0
            end, rest = end + done, rest - done
            if rest <= 0.0:
                return start, end
        if not begun:
            start = finish
        end = finish
    return start, end + rest
