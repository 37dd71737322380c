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

from ..planner.plain_table import adapters_table
from ..traces.counted import counted
from .evaluation_records import EvaluationRecord
from .metrics import StepRecord

_LINE_EVERY_S = 15.0
"""Seconds from one plain line to the next."""
_COLUMNS = ("step", "loss", "vali-\ndation", "rate", "grad\nnorm", "tokens\n/s", "time\nleft")
_OTHER_LINES = 8
"""Of a terminal's height, beside the adapters: the head of the table, the sum, what stands below, and the prompt."""


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
        return (
            name,
            f"{last.step + 1}/{self.num_steps}" + (" skipped" if last.state == "skipped" else ""),
            f"{last.loss:.4f}",
            validation,
            f"{last.learning_rate:.1e}",
            f"{last.grad_norm:.3g}",
            _rate(self.tokens, last.ms),
            last.state if self.is_halted() else _clock(self.left_ms()),
        )

    def steps_done(self) -> int:
        """Taken or left out so far, before this run too."""
        return self.steps_before if self.last is None else self.last.step + 1

    def is_halted(self) -> bool:
        """Whether no step follows, although some were planned."""
        return self.last is not None and self.last.state in ("quarantined", "stopped")

    def has_ended(self) -> bool:
        """Whether no step follows."""
        return self.is_halted() or self.steps_done() == self.num_steps

    def left_ms(self) -> float:
        """What its steps to come take at its pace so far; 0 where no step follows, or none has been taken."""
        if self.last is None or self.has_ended():
            return 0.0
        return self.last.ms * (self.num_steps - self.steps_done()) / (self.steps_done() - self.steps_before)


def sum_cells(rows: Mapping[str, Progress]) -> tuple[str, ...]:
    """Of the table's columns, for all adapters together: steps, tokens/s, and the time until the last one is done."""
    steps = f"{sum(row.steps_done() for row in rows.values())}/{sum(row.num_steps for row in rows.values())}"
    lasts = [row.last.ms for row in rows.values() if row.last is not None]
    rate = _rate(sum(row.tokens for row in rows.values()), max(lasts, default=0.0))
    left = _clock(max((row.left_ms() for row in rows.values()), default=0.0)) if lasts else "-"
    return ("all", steps, "", "", "", "", rate, left)


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
        _, steps, *_, rate, left = sum_cells(self._rows)
        told = []
        for adapter, row in self._rows.items():
            name, step, loss, *_, end = row.cells(adapter)
            told.append(f"{name} {step} loss {loss}" + (f" {end}" if row.is_halted() else ""))
        return f"step {steps}, {rate} tokens/s, {left} left, memory {_memory()}: {'; '.join(told)}"

    def _table(self) -> Table:
        table = adapters_table(_COLUMNS)
        shown = self._shown()
        for name in shown:
            table.add_row(*self._rows[name].cells(name))
        hidden = len(self._rows) - len(shown)
        table.caption = f"memory of the last stage: {_memory()}"
        if hidden:
            table.caption = f"{counted(hidden, 'more adapter')}; {table.caption}"
        table.caption_justify = "left"
        if len(self._rows) > 1:
            table.add_section()
            table.add_row(*sum_cells(self._rows))
        return table

    def _shown(self) -> list[str]:
        # As many as the terminal has lines for, those that still train before the others.
        most = max(1, self._console.height - _OTHER_LINES)
        wanted = sorted(self._rows, key=lambda name: self._rows[name].has_ended())[:most]
        return [name for name in self._rows if name in wanted]


def _rate(tokens: int, ms: float) -> str:
    return f"{1000 * tokens / ms:,.0f}" if ms > 0 else "-"


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
