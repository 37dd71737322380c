"""Numbers on their way from the device: handed over in order once they are known; the host waits for none of them."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .host_copy import HostCopy
from .recorder import now_ns

_LONGEST = 64
"""Numbers that may be under way: the host is never further ahead of what has been told."""
Tell = Callable[[list[float], float], None]
"""Hears the values and when they were known, in ms since the run began."""


@dataclass(frozen=True, slots=True)
class _UnderWay:
    values: HostCopy
    sent_ns: int
    tell: Tell


class Figures:
    """A queue of float64 vectors."""

    def __init__(self) -> None:
        self._queue: deque[_UnderWay] = deque()
        self._begin_ns = now_ns()
        self._begin: torch.cuda.Event | None = None

    def begin(self, device: torch.device) -> None:
        """Count milliseconds from now on; `device` is where the figures will come from."""
        self._begin_ns = now_ns()
        if device.type == "cuda":
            self._begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._begin.record(torch.cuda.current_stream(device))

    def send(self, values: Tensor, tell: Tell) -> None:
        """`values` float64 `[n]` on the device are on their way."""
        self._queue.append(_UnderWay(HostCopy(values), now_ns(), tell))
        self.tell()
        while len(self._queue) > _LONGEST:
            self._tell_oldest()

    def tell(self) -> None:
        """Tell what is known by now."""
        while self._queue and self._queue[0].values.is_there():
            self._tell_oldest()

    def flush(self) -> None:
        """Wait for what is under way, and tell it."""
        while self._queue:
            self._tell_oldest()

    def _tell_oldest(self) -> None:
        sent = self._queue.popleft()
        values, ready, ms = sent.values.get().tolist(), sent.values.ready, (sent.sent_ns - self._begin_ns) / 1e6
        if ready is not None and self._begin is not None:
            ms = self._begin.elapsed_time(ready)
        sent.tell(values, ms)
