"""Moments on a GPU's streams, and what a host clock showed at them.

A CUDA event notes when its stream came to it, without making anybody wait. How far apart two events are is told as
float32 milliseconds, so the distance to an anchor, an event whose host time is known, loses 1 us after 16 s. Anchors
are therefore set anew every few seconds; two in succession also tell how fast the GPU's clock runs against the host's.
"""

import time
from dataclasses import dataclass

import torch

_ANCHOR_EVERY_NS = 5_000_000_000
_ATTEMPTS = 5
_PATIENCE_NS = 1_000_000
"""How long to wait for one anchor. Never without end: a stream may share its queue with one that awaits a message."""
_GOOD_TRIP_NS = 100_000
"""From before an anchor is sent until it is seen to be done. Longer, and its host time would be worse than none."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """An event whose host time is known."""

    event: torch.cuda.Event
    host_ns: int
    host_ns_per_ms: float
    """Host nanoseconds that pass in a millisecond of the GPU's clock."""


@dataclass(frozen=True, slots=True)
class DeviceMark:
    """An event on a stream, and the anchor that was set before it."""

    event: torch.cuda.Event
    anchor: Anchor

    def is_past(self) -> bool:
        """Whether the stream has come to it."""
        return bool(self.event.query())

    def host_ns(self) -> int:
        """The host's clock at that moment; waits for it."""
        self.event.synchronize()
        since_ms: float = self.anchor.event.elapsed_time(self.event)
        return self.anchor.host_ns + round(since_ms * self.anchor.host_ns_per_ms)


class DeviceClock:
    """Makes the marks of one worker. Setting an anchor takes 20 to 50 us of its thread, and nothing of the GPU's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # A stream of its own, so that an anchor waits behind no work.
        self._stream = torch.cuda.Stream(device, priority=-1)
        torch.cuda.synchronize(device)
        first = None
        while first is None:
            first = self._attempt(None, patience_ns=10**9, good_ns=10**9)
        self._anchor, self._due_ns = self._renewed(first)

    def mark(self) -> DeviceMark:
        """This moment on the current stream."""
        if time.perf_counter_ns() > self._due_ns:
            self._anchor, self._due_ns = self._renewed(self._anchor)
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return DeviceMark(event, self._anchor)

    def of(self, event: torch.cuda.Event) -> DeviceMark:
        """A mark of an event that somebody has just recorded; it must have timing."""
        return DeviceMark(event, self._anchor)

    def _renewed(self, last: Anchor) -> tuple[Anchor, int]:
        # A new anchor, or the last one where none was good enough, and when to try again.
        for _ in range(_ATTEMPTS):
            found = self._attempt(last, patience_ns=_PATIENCE_NS, good_ns=_GOOD_TRIP_NS)
            if found is not None:
                return found, time.perf_counter_ns() + _ANCHOR_EVERY_NS
        return last, time.perf_counter_ns() + _ANCHOR_EVERY_NS // 50

    def _attempt(self, last: Anchor | None, *, patience_ns: int, good_ns: int) -> Anchor | None:
        # The event was in the middle of the trip, as far as one can tell.
        event = torch.cuda.Event(enable_timing=True)
        before_ns = time.perf_counter_ns()
        event.record(self._stream)
        while not event.query():
            if time.perf_counter_ns() - before_ns > patience_ns:
                return None
        trip_ns = time.perf_counter_ns() - before_ns
        if trip_ns > good_ns:
            return None
        host_ns = before_ns + trip_ns // 2
        if last is None or host_ns - last.host_ns < _ANCHOR_EVERY_NS // 2:
            return Anchor(event, host_ns, 1e6 if last is None else last.host_ns_per_ms)
        return Anchor(event, host_ns, (host_ns - last.host_ns) / last.event.elapsed_time(event))
