"""The plots of one run, as a list: the report puts them on its page, `compare` into the run's folder."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .gantt import plot_gantt
from .metrics import Summary
from .plots import plot_bubbles, plot_losses, plot_memory, plot_predictions, plot_waste
from .run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One plot of a run: on the report's page, or as a file of its own."""

    name: str
    """File name without its ending."""
    title: str
    caption: str
    draw: Callable[[Path], None]
    wide: bool = False


def run_pictures(run: Run, summaries: Sequence[Summary]) -> Iterator[Picture]:
    """Every plot that what the folder holds allows, the Gantt chart first."""
    timelines = run.timelines()
    yield Picture(
        name="gantt",
        title="Gantt",
        caption="Every stage over time. Pale: forward, full: backward, striped: several adapters in one microbatch.",
        draw=lambda path: plot_gantt(timelines, run.plan, path),
        wide=True,
    )
    yield Picture(
        name="bubbles",
        title="Bubbles",
        caption="Share of all stages' time in which no forward, backward or step was computed, by cause.",
        draw=lambda path: plot_bubbles({"": {summary.source: summary for summary in summaries}}, path),
    )
    if run.plan is not None:
        plan = run.plan
        yield Picture(
            name="waste",
            title="Waste",
            caption="What the microbatches of each adapter hold.",
            draw=lambda path: plot_waste(plan, path),
        )
    if run.simulated is not None and run.measured is not None:
        simulated, measured = run.simulated, run.measured
        yield Picture(
            name="predictions",
            title="Prediction and reality",
            caption="Every action's measured against its simulated duration.",
            draw=lambda path: plot_predictions(simulated=simulated, measured=measured, path=path),
        )
    if run.losses:
        yield Picture(
            name="losses",
            title="Losses",
            caption="Training loss of each adapter.",
            draw=lambda path: plot_losses(run.losses, path),
        )
    if any(len(timeline.counters) for timeline in timelines):
        tracked = [timeline for timeline in timelines if len(timeline.counters)]
        yield Picture(
            name="memory",
            title="Memory",
            caption="Memory that each stage held over time.",
            draw=lambda path: plot_memory(tracked, path),
            wide=True,
        )
