"""Spans of what one worker did, on its own monotonic clock; merged into one Timeline after the run.

On a CPU a moment is a reading of the clock. On a GPU the host runs ahead, so a moment is a mark on the stream, which
costs a few microseconds and makes nobody wait: a span of compute lasts from when the stream came to the action's first
kernel until it was through with the last, and a wait from the end of what stood before it on the stream.
"""

import threading
import time
from collections import deque
from dataclasses import dataclass, field

import torch

from ..traces.timeline import Span, SpanKind
from .device_clock import DeviceClock, DeviceMark

_LOOK_BACK = 64
"""Spans that may wait to be read off before we look which of them are over: bounds the events alive."""


def now_ns() -> int:
    """The clock of all spans: monotonic, one for all processes of a machine."""
    return time.perf_counter_ns()


class Later:
    """A moment that another thread will tell: when a message had left."""

    def __init__(self) -> None:
        self._told = threading.Event()
        self._ns = 0

    def tell(self, ns: int) -> None:
        """It was now."""
        self._ns = ns
        self._told.set()

    def is_past(self) -> bool:
        """Whether it has been told."""
        return self._told.is_set()

    def host_ns(self) -> int:
        """The host's clock at that moment; waits for it."""
        self._told.wait()
        return self._ns


Mark = int | DeviceMark | Later
"""A moment: on the host's clock in ns, on a stream, or yet to be told."""
Left = int | torch.cuda.Event | Later
"""When a message had left, as a transport knows it."""
_Row = tuple[SpanKind, str, int, int, int, int]


@dataclass(slots=True)
class Recorder:
    """Collects one worker's spans; cheap enough to be always on (one tuple each)."""

    stage: int
    replica: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    clock_offset_ns: int = 0
    """What to add to this worker's clock to get that of worker 0 (clock.py)."""
    rows: list[_Row] = field(default_factory=list)
    """Spans that are known: kind, action, microbatch, start and end in ns of the local clock, bytes."""
    _open: deque[tuple[SpanKind, str, int, Mark, Mark, int]] = field(default_factory=deque)
    _clock: DeviceClock | None = None

    def mark(self) -> Mark:
        """This moment: of the host, or of the current stream where the worker computes on a GPU."""
        return now_ns() if self.device.type == "cpu" else self._device_clock().mark()

    def add(
        self, kind: SpanKind, action: str, *, microbatch: int, start: Mark, end: Mark | Left, num_bytes: int = 0
    ) -> None:
        """Note a span between two moments."""
        if isinstance(end, torch.cuda.Event):
            end = self._device_clock().of(end)
        self._open.append((kind, action, microbatch, start, end, num_bytes))
        if isinstance(end, int) or len(self._open) > _LOOK_BACK:
            self._read_off(wait=False)

    def settle(self) -> None:
        """Wait until every span is over, so that `rows` holds them all, in the order in which they were added."""
        self._read_off(wait=True)

    def compute_ms(self) -> list[float]:
        """How long each action took, in order."""
        self.settle()
        return [(end - start) / 1e6 for kind, _, _, start, end, _ in self.rows if kind == "compute"]

    def spans(self, *, origin_ns: int) -> tuple[Span, ...]:
        """The spans on worker 0's clock, in milliseconds after `origin_ns` of it."""
        self.settle()
        shift = self.clock_offset_ns - origin_ns
        return tuple(
            Span(
                replica=self.replica,
                stage=self.stage,
                kind=kind,
                action=action,
                microbatch=microbatch,
                start_ms=(start_ns + shift) / 1e6,
                end_ms=(end_ns + shift) / 1e6,
                bytes=num_bytes,
            )
            for kind, action, microbatch, start_ns, end_ns, num_bytes in self.rows
        )

    def _device_clock(self) -> DeviceClock:
        if self._clock is None:
            self._clock = DeviceClock(self.device)
        return self._clock

    def _read_off(self, *, wait: bool) -> None:
        while self._open and (wait or _is_past(self._open[0][4])):
            kind, action, microbatch, start, end, num_bytes = self._open.popleft()
            self.rows.append((kind, action, microbatch, _host_ns(start), _host_ns(end), num_bytes))


def _is_past(mark: Mark) -> bool:
    return isinstance(mark, int) or mark.is_past()


def _host_ns(mark: Mark) -> int:
    return mark if isinstance(mark, int) else mark.host_ns()
