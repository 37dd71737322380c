"""What a run shows: bars on stderr while it loads and trains, a table on stdout when it is done."""

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from ..planner.plain_table import adapters_table, plain_table
from ..traces.counted import counted

if TYPE_CHECKING:
    from ..traces.ranking import Ranking
    from .parity import ParityRow
    from .trained_run import TrainedAdapter, TrainedRun


class LoadBars:
    """A context manager with one bar for each thing that a (label, share done) callback names."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        # Where nobody watches, a bar would leave an empty line.
        self._progress = Progress(console=console, transient=True, disable=not console.is_interactive)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "LoadBars":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, label: str, share: float) -> None:
        """Show how far `label` is."""
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(label, total=1.0)
        self._progress.update(self._tasks[label], completed=share)

    def close(self) -> None:
        """Draw no more: the workers draw their own bars, once they have come up, which takes seconds."""
        self._progress.stop()
        if self._progress.console.is_terminal:
            self._progress.console.print("starting the processes of the run", highlight=False)


def train_line(run: "TrainedRun") -> str:
    """A run in one sentence."""
    return (
        f"{run.output_dir}: {run.tokens:,} tokens in {run.makespan_ms / 1000:.1f} s, {run.tokens_per_s():,.0f} tokens/s"
    )


def train_table(run: "TrainedRun") -> Table:
    """What a run made, one row per adapter."""
    table = adapters_table(("steps", "first\nloss", "last\nloss", "validation"))
    for adapter in run.adapters:
        table.add_row(
            adapter.name,
            _steps(adapter),
            f"{adapter.first.loss:.4f}",
            f"{adapter.last.loss:.4f}",
            " to ".join(f"{loss:.4f}" for loss in adapter.validation.values()) or "-",
        )
    return table


def ranking_table(ranking: "Ranking") -> Table:
    """Adapters of the same data, the best first, and what tells them apart."""
    table = plain_table(title="\n".join(filter(None, (ranking.title(), ranking.note))))
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("adapter", overflow="fold")
    for column in ("loss", "at step"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("differs in", overflow="fold")
    for place, row in enumerate(ranking.adapters, start=1):
        table.add_row(str(place), row.name, f"{row.loss:.4f}", str(row.step), row.settings_text() or "nothing")
    return table


def _steps(adapter: "TrainedAdapter") -> str:
    if adapter.quarantined_at is not None:
        return f"{adapter.steps_taken}, then\nquarantined"
    if adapter.stopped_at is not None:
        return f"{adapter.steps_taken}, then\nstopped early"
    return str(adapter.steps_taken) + (f", {len(adapter.skipped)} left out" if adapter.skipped else "")


def parity_table(rows: "Sequence[ParityRow]") -> Table:
    """How far adapters trained together and alone end apart."""
    num_steps = max(row.steps for row in rows)
    table = adapters_table(
        ("alone in", "weights", "losses", "mean", "moved", ""),
        title=f"together and alone, {counted(num_steps, 'step')}: largest difference of weights,\n"
        "largest and mean one of losses",
    )
    for row in rows:
        table.add_row(
            row.adapter,
            row.against if row.against == "peft" else f"{row.against}\n+ dropout",
            f"{row.max_weight_difference:.1e}",
            f"{row.max_loss_difference:.1e}",
            f"{row.mean_loss_difference:.1e}",
            f"{row.max_weight_change:.1e}",
            "equal" if row.is_equal() else f"APART: {row.judged_by},\nlimit {row.limit:.0e}",
        )
    return table
