"""What becomes of optimizer steps, told in order once the device has worked it out."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from ..planner.jobs import OnNonfinite
from .errors import EngineError
from .figures import Figures
from .metrics import StepRecord, StepState


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingStep:
    """What the host knows of a step when it sends it to the device."""

    adapter: str
    step: int
    learning_rate: float
    tokens: int


class StepReports:
    """Turns steps into StepRecords for `hear`, in the order in which they were sent.

    `halted` are adapters that take no more steps: nothing more is told of them. Raises EngineError for the first
    non-finite step where `on_nonfinite` is "stop".
    """

    def __init__(
        self,
        hear: Callable[[StepRecord], None],
        figures: Figures,
        *,
        on_nonfinite: OnNonfinite,
        halted: Iterable[str] = (),
    ) -> None:
        self._hear = hear
        self._figures = figures
        self._on_nonfinite = on_nonfinite
        self._halted = set(halted)

    def send(self, step: PendingStep, values: Tensor) -> None:
        """A step is on its way: `values` float64 `[5]` on the device (loss, total, update, taken, stopped)."""
        self._figures.send(values, lambda known, ms: self._tell(step, known, ms))

    def _tell(self, step: PendingStep, values: list[float], ms: float) -> None:
        if step.adapter in self._halted:
            return
        loss, total, update, taken, stopped = values
        state = self._state(taken=bool(taken), stopped=bool(stopped))
        if state in ("quarantined", "stopped"):
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
        if state in ("skipped", "quarantined") and self._on_nonfinite == "stop":
            raise EngineError(
                f"adapter '{step.adapter}', step {step.step}: {what_broke(record)}; lower its learning_rate or look at "
                "its data, or train the others on with on_nonfinite: quarantine"
            )

    def _state(self, *, taken: bool, stopped: bool) -> StepState:
        if taken:
            return "taken"
        if stopped:
            return "stopped"
        return "skipped" if self._on_nonfinite == "skip" else "quarantined"


def what_broke(record: StepRecord) -> str:
    """Of a step that was not taken."""
    if math.isfinite(record.loss):
        if math.isfinite(record.grad_norm):
            return f"the learning rate is {record.learning_rate:g}, more than float32 can add to a weight"
        return f"the gradient norm is {record.grad_norm}"
    return f"the loss is {record.loss}"
