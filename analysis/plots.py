"""The pictures of a run other than the Gantt: each takes data and a path, and saves SVG and PNG there."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..planner.plan import Plan
from ..planner.waste import waste_by_adapter
from ..traces.timeline import Timeline
from .actions import NAMES
from .causes import CAUSES
from .compare import action_times
from .metrics import Summary
from .style import (
    CAUSE_COLOURS,
    INK,
    MARKERS,
    MUTED,
    PALETTE,
    adapter_colour,
    label_bars,
    legend_beside,
    memory_unit,
    picture,
    time_unit,
    tint,
)
from .units import percent

_SMOOTHED_FROM = 40
"""Steps from which a loss curve is shown smoothed, with the raw one pale behind it."""


def plot_losses(losses: Mapping[str, pd.DataFrame], path: Path | str) -> None:
    """Loss over optimizer steps, one line an adapter; each frame has the columns `step` and `loss`."""
    with picture(path, width=8.0, height=4.5) as figure:
        axes = figure.subplots()
        for adapter, (name, frame) in enumerate(losses.items()):
            step, loss = frame["step"].to_numpy(), frame["loss"].to_numpy()
            colour = adapter_colour(adapter)
            if len(step) >= _SMOOTHED_FROM:
                axes.plot(step, loss, color=tint(colour, 0.6), linewidth=0.8)
                loss = frame["loss"].rolling(len(step) // 10, center=True, min_periods=1).mean().to_numpy()
            few = len(step) < _SMOOTHED_FROM
            axes.plot(
                step,
                loss,
                color=colour,
                linewidth=2.0,
                marker=MARKERS[adapter % len(MARKERS)],
                markersize=4 if few else 5,
                markevery=1 if few else max(1, len(step) // 10),
                label=name,
            )
        axes.set_xlabel("optimizer step of the adapter")
        axes.set_ylabel("loss [nats per target token]")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title("Training loss of each adapter")
        if losses:
            legend_beside(figure, len(losses))


def plot_bubbles(summaries: Mapping[str, Mapping[str, Summary]], path: Path | str) -> None:
    """Bubble ratio by cause: one bar a system, side by side for every data set (`{data set: {system: Summary}}`)."""
    bars = [(dataset, system, summary) for dataset, row in summaries.items() for system, summary in row.items()]
    places, place = [], 0.0
    for number, (dataset, _, _) in enumerate(bars):
        place += 1.0 if number and dataset == bars[number - 1][0] else 1.6 if number else 0.0
        places.append(place)
    with picture(path, width=max(6.0, 1.5 + 0.62 * place), height=4.8) as figure:
        axes = figure.subplots()
        below = np.zeros(len(bars))
        handles = []
        for cause in _causes([summary for _, _, summary in bars]):
            shares = np.array([_cause_share(summary, cause) for _, _, summary in bars])
            colour = CAUSE_COLOURS.get(cause, MUTED)
            handles.append(axes.bar(places, shares, bottom=below, width=0.8, color=colour, label=cause))
            below += shares
        label_bars(axes, places, below.tolist(), [percent(summary.bubble_ratio) for _, _, summary in bars])
        many = len(bars) > 4
        axes.set_xticks(
            places, [system for _, system, _ in bars], rotation=35 if many else 0, ha="right" if many else "center"
        )
        axes.set_ylabel("share of all stages' time [%]")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axes.set_ylim(0.0, max(0.05, 1.18 * float(below.max(initial=0.0))))
        axes.grid(axis="x", visible=False)
        for dataset in summaries if len(summaries) > 1 else ():
            own = [at for at, (name, _, _) in zip(places, bars, strict=True) if name == dataset]
            axes.annotate(
                dataset,
                (float(np.mean(own)), 1.0),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="top",
                fontweight="bold",
            )
        axes.set_title("Bubble ratio by cause")
        figure.legend(handles=handles[::-1], loc="outside right upper", fontsize=9)


def plot_memory(
    timelines: Timeline | Sequence[Timeline], path: Path | str, *, capacity_bytes: float | None = None
) -> None:
    """Memory that each stage holds over time, one panel a timeline; a dashed line is what the device has."""
    shown = [timelines] if isinstance(timelines, Timeline) else list(timelines)
    largest = max(
        (float(timeline.counters["bytes"].max()) for timeline in shown if len(timeline.counters)), default=0.0
    )
    factor, unit = memory_unit(max(largest, capacity_bytes or 0.0))
    time_factor, time_name = time_unit(max((timeline.makespan_ms() for timeline in shown), default=0.0))
    with picture(path, width=9.0, height=0.8 + 2.8 * len(shown)) as figure:
        panels = figure.subplots(len(shown), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, timeline in zip(panels, shown, strict=True):
            held = timeline.counters
            workers = held[["replica", "stage"]].drop_duplicates()
            for replica, stage in zip(workers["replica"].tolist(), workers["stage"].tolist(), strict=True):
                own = held[(held["replica"] == replica) & (held["stage"] == stage)]
                own_ms = np.append(own["ms"].to_numpy(), held["ms"].max())
                own_bytes = np.append(own["bytes"].to_numpy(), own["bytes"].iloc[-1])
                axes.step(
                    (own_ms - held["ms"].min()) * time_factor,
                    own_bytes * factor,
                    where="post",
                    color=adapter_colour(stage),
                    linewidth=1.3,
                    label=f"stage {stage}" if replica == 0 and axes is panels[0] else None,
                )
            if capacity_bytes is not None:
                axes.axhline(capacity_bytes * factor, color=INK, linestyle="--", linewidth=1.0)
                axes.annotate(
                    "memory of the device",
                    (1.0, capacity_bytes * factor),
                    xycoords=("axes fraction", "data"),
                    ha="right",
                    va="bottom",
                    fontsize=8,
                )
            axes.set_ylim(0.0, 1.12 * factor * max(largest, capacity_bytes or 0.0) or 1.0)
            axes.set_ylabel(f"memory [{unit}]")
            axes.set_title(f"Memory of each stage: {timeline.source} ({timeline.origin})")
        panels[-1].set_xlabel(f"time since the start of the run [{time_name}]")
        if largest:
            legend_beside(figure, 1)


def plot_waste(plan: Plan, path: Path | str) -> None:
    """What the microbatches of each adapter hold: real tokens, padding, unused capacity."""
    wastes = waste_by_adapter(plan)
    names = [job.name for job in plan.jobs]
    parts = {
        "real tokens": ([waste.num_tokens for waste in wastes], "#0072B2"),
        "padding": ([waste.padding_tokens for waste in wastes], "#D55E00"),
        "unused capacity": ([waste.capacity_waste_tokens for waste in wastes], "#cfcfcf"),
    }
    whole = np.maximum([waste.capacity_tokens() for waste in wastes], 1.0)
    with picture(path, width=8.0, height=1.6 + 0.36 * len(names)) as figure:
        axes = figure.subplots()
        left = np.zeros(len(names))
        for label, (values, colour) in parts.items():
            shares = np.asarray(values, dtype=np.float64) / whole
            axes.barh(range(len(names)), shares, left=left, height=0.7, color=colour, label=label)
            for place, (begin, share) in enumerate(zip(left, shares, strict=True)):
                if share > 0.06:
                    ink = "white" if colour in ("#0072B2", "#D55E00") else INK
                    axes.text(begin + share / 2, place, percent(share), ha="center", va="center", fontsize=8, color=ink)
            left += shares
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(0.0, 1.0)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        axes.set_xlabel(
            f"share of the capacity of the adapter's microbatches [%], {plan.microbatch_tokens:,} tokens each"
        )
        axes.grid(axis="y", visible=False)
        axes.set_title("What the microbatches hold")
        figure.legend(loc="outside lower center", ncols=3)


def plot_predictions(*, simulated: Timeline, measured: Timeline, path: Path | str) -> None:
    """Every action's measured against its simulated duration; on the line the prediction was right."""
    times = action_times(simulated, measured)
    times = times[(times["simulated_ms"] > 0) & (times["measured_ms"] > 0)]
    with picture(path, width=6.4, height=5.6) as figure:
        axes = figure.subplots()
        for number, (letter, name) in enumerate(NAMES.items()):
            own = times[times["letter"] == letter]
            if len(own):
                axes.scatter(
                    own["simulated_ms"],
                    own["measured_ms"],
                    s=14,
                    alpha=0.6,
                    linewidths=0,
                    color=PALETTE[number],
                    marker=MARKERS[number],
                    label=f"{name} ({len(own)})",
                    rasterized=len(own) > 3000,
                )
        if len(times):
            both = times[["simulated_ms", "measured_ms"]].to_numpy()
            ends = np.array([both.min() / 1.3, both.max() * 1.3])
            axes.plot(ends, ends, color=INK, linewidth=1.0, label="as foretold")
            axes.fill_between(ends, ends * 0.8, ends * 1.2, color=MUTED, alpha=0.15, linewidth=0, label="within 20 %")
            axes.set_xlim(*ends)
            axes.set_ylim(*ends)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("simulated duration of an action [ms]")
        axes.set_ylabel("measured duration of the same action [ms]")
        axes.set_title("Prediction and reality, action by action")
        if len(times):
            axes.legend(loc="upper left")


def _causes(summaries: Sequence[Summary]) -> list[str]:
    found = {cause for summary in summaries for cause in summary.bubble_ms_by_cause}
    return [*(cause for cause in CAUSES if cause in found), *sorted(found - set(CAUSES))]


def _cause_share(summary: Summary, cause: str) -> float:
    whole_ms = summary.makespan_ms * summary.num_stages * summary.num_replicas
    return summary.bubble_ms_by_cause.get(cause, 0.0) / whole_ms if whole_ms else 0.0
