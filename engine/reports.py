"""What becomes of optimizer steps, told in order once the device has worked it out; the host waits for none of it."""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..planner.jobs import OnNonfinite
from .errors import EngineError
from .metrics import StepRecord, StepState
from .recorder import now_ns

_LONGEST = 64
"""Reports that may be under way: the host is never further ahead of what has been told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingStep:
    """What the host knows of a step when it sends it to the device."""

    adapter: str
    step: int
    learning_rate: float
    tokens: int


@dataclass(frozen=True, slots=True)
class _UnderWay:
    step: PendingStep
    figures: Tensor
    """On the host once `ready` has come: loss, total squared gradient norm, squared update, whether it was taken."""
    ready: torch.cuda.Event | None
    sent_ns: int


class StepReports:
    """Turns steps into StepRecords for `hear`, in the order in which they were sent.

    `halted` are adapters that take no more steps: nothing more is told of them. Raises EngineError for the first
    non-finite step where `on_nonfinite` is "stop".
    """

    def __init__(
        self, hear: Callable[[StepRecord], None], *, on_nonfinite: OnNonfinite, halted: Iterable[str] = ()
    ) -> None:
        self._hear = hear
        self._on_nonfinite = on_nonfinite
        self._halted = set(halted)
        self._queue: deque[_UnderWay] = deque()
        self._begin_ns = now_ns()
        self._begin: torch.cuda.Event | None = None

    def begin(self, device: torch.device) -> None:
        """Count milliseconds from now on; `device` is where the figures will come from."""
        self._begin_ns = now_ns()
        if device.type == "cuda":
            self._begin = _event(device)

    def send(self, step: PendingStep, figures: Tensor) -> None:
        """A step is on its way: `figures` float64 `[4]` on the device (loss, total, update, taken)."""
        ready = None
        if figures.device.type == "cuda":
            host = torch.empty(4, dtype=torch.float64, pin_memory=True)
            host.copy_(figures, non_blocking=True)
            figures, ready = host, _event(figures.device)
        self._queue.append(_UnderWay(step, figures, ready, now_ns()))
        self.tell()
        while len(self._queue) > _LONGEST:
            self._tell_oldest()

    def tell(self) -> None:
        """Tell what is known by now."""
        while self._queue and _is_past(self._queue[0].ready):
            self._tell_oldest()

    def flush(self) -> None:
        """Wait for what is under way, and tell it."""
        while self._queue:
            self._tell_oldest()

    def _tell_oldest(self) -> None:
        sent = self._queue.popleft()
        ms = (sent.sent_ns - self._begin_ns) / 1e6
        if sent.ready is not None:
            sent.ready.synchronize()
            ms = self._begin.elapsed_time(sent.ready) if self._begin is not None else ms
        loss, total, update, taken = sent.figures.tolist()
        step, state = sent.step, self._state(bool(taken))
        if step.adapter in self._halted:
            return
        if state == "quarantined":
            self._halted.add(step.adapter)
        record = StepRecord(
            adapter=step.adapter,
            step=step.step,
            loss=loss,
            learning_rate=step.learning_rate,
            grad_norm=math.sqrt(total),
            update_norm=math.sqrt(update),
            tokens=step.tokens,
            ms=ms,
            state=state,
        )
        self._hear(record)
        if state != "taken" and self._on_nonfinite == "stop":
            raise EngineError(
                f"adapter '{step.adapter}', step {step.step}: {what_broke(record)}; lower its learning_rate or look at "
                "its data, or train the others on with on_nonfinite: quarantine"
            )

    def _state(self, taken: bool) -> StepState:
        if taken:
            return "taken"
        return "skipped" if self._on_nonfinite == "skip" else "quarantined"


def what_broke(record: StepRecord) -> str:
    """Of a step that was not taken."""
    if math.isfinite(record.loss):
        return f"the gradient norm is {record.grad_norm}"
    return f"the loss is {record.loss}"


def _is_past(ready: torch.cuda.Event | None) -> bool:
    return ready is None or bool(ready.query())  # type: ignore[no-untyped-call]


def _event(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event
