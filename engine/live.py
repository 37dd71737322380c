"""How training goes, as it goes: a table on a terminal, elsewhere a line every so often. Both on stderr."""

import math
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from .evaluation_records import EvaluationRecord
from .metrics import StepRecord

_LINE_EVERY_S = 15.0
"""Seconds from one plain line to the next."""
_COLUMNS = ("adapter", "step", "loss", "validation", "rate", "grad norm", "tokens/s", "time left")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One adapter's."""

    num_steps: int
    steps_before: int
    """Taken before this run, which may be the resumed part of another."""
    tokens: int = 0
    """Of this run's steps."""
    last: StepRecord | None = None
    validation_loss: float | None = None

    def after(self, record: StepRecord) -> "Progress":
        """With one more step."""
        return replace(self, last=record, tokens=self.tokens + record.tokens)

    def cells(self, name: str) -> tuple[str, ...]:
        """Of the table's columns."""
        validation = "-" if self.validation_loss is None else f"{self.validation_loss:.4f}"
        last = self.last
        if last is None:
            return (name, f"{self.steps_before}/{self.num_steps}", "-", validation, "-", "-", "-", "-")
        done = last.step + 1 - self.steps_before
        left = "-" if last.state in ("quarantined", "stopped") else _clock(last.ms * self._left(last) / done)
        return (
            name,
            f"{last.step + 1}/{self.num_steps}" + ("" if last.state == "taken" else f" {last.state}"),
            f"{last.loss:.4f}",
            validation,
            f"{last.learning_rate:.1e}",
            f"{last.grad_norm:.3g}",
            f"{1000 * self.tokens / last.ms:.0f}" if last.ms > 0 else "-",
            left,
        )

    def _left(self, last: StepRecord) -> int:
        return self.num_steps - last.step - 1


class LiveTable:
    """A context manager that listens to training. Shows nothing until `begin`."""

    def __init__(self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = Console(stderr=True) if console is None else console
        self._clock = clock
        self._rows: dict[str, Progress] = {}
        self._last_line_s = -math.inf
        self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=4, transient=True)

    def __enter__(self) -> "LiveTable":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def loading(self, number: int, num_files: int) -> None:
        """Say which file of weights is being read; all workers read theirs at the same time."""
        if self._console.is_terminal:
            self._console.print(f"loading weights {number} of {num_files}", highlight=False)

    def begin(self, num_steps: Mapping[str, int], steps_done: Mapping[str, int]) -> None:
        """Show the adapters: steps in all and steps taken before."""
        for adapter, total in num_steps.items():
            self._rows[adapter] = Progress(num_steps=total, steps_before=steps_done[adapter])
        if self._console.is_terminal:
            self._live.start()
        else:
            self._last_line_s = self._clock()

    def advance(self, record: StepRecord) -> None:
        """A step has been taken, or left out."""
        self._rows[record.adapter] = self._rows[record.adapter].after(record)
        if not self._console.is_terminal and self._clock() - self._last_line_s >= _LINE_EVERY_S:
            self._last_line_s = self._clock()
            self._console.print(self._line(), highlight=False, markup=False, soft_wrap=True)

    def evaluated(self, record: EvaluationRecord) -> None:
        """A validation loss is known."""
        self._rows[record.adapter] = replace(self._rows[record.adapter], validation_loss=record.loss)

    def _line(self) -> str:
        known = [row.cells(name) for name, row in self._rows.items()]
        told = [f"{name} {step} loss {loss} ({left} left)" for name, step, loss, _, _, _, _, left in known]
        return f"{'; '.join(told)}; memory {_memory()}"

    def _table(self) -> Table:
        table = Table(caption=f"memory of the last stage: {_memory()}", caption_justify="left")
        for column in _COLUMNS:
            table.add_column(column, justify="left" if column == "adapter" else "right", no_wrap=True)
        for name, row in self._rows.items():
            table.add_row(*row.cells(name))
        return table


def _clock(ms: float) -> str:
    seconds = round(ms / 1000)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _memory() -> str:
    # Most so far: of the GPU where the process uses one, else of the machine.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of the GPU at most"
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB at most"
