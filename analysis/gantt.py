"""Gantt pictures: what every stage did when, one panel a timeline, all on one time axis."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path as MplPath
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..planner.plan import Plan
from ..traces.counted import counted
from ..traces.timeline import Timeline
from .actions import BACKWARDS, FORWARDS, OTHERS, letters
from .bars import Bars, bars_of, density_image
from .explain import explain_waits
from .metrics import summarize
from .style import FORWARD_TINT, INK, MUTED, WAIT, adapter_colour, picture, time_unit, tint
from .units import ms_text, percent

Floats = NDArray[np.float64]
_BAR = 0.84
"""Height of a stage's bar where rows are 1 apart."""
_MOST_VECTORS = 2500
"""Spans above which an SVG holds them as an image: a browser would crawl."""
_MOST_BARS = 20_000
"""Spans above which bars are not drawn one by one, but as shares of each pixel column."""
_CROWDED = 120
"""Passes of a stage above which a stretch of them is shown enlarged."""
_ENLARGED = 50
"""Passes of a stage in that stretch."""
_MOST_STEP_LINES = 60
"""Optimizer steps of a stage up to which each gets a line through its row."""
_AXES_INCHES = 12.6
"""Width of a panel without its labels."""
_MOST_NAMED = 12
"""Adapters that the legend names; there are not more colours to tell apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    """The stretch of time that a column of panels shows."""

    from_ms: float
    to_ms: float
    factor: float
    """From ms to the unit of the time axis."""

    def span_ms(self) -> float:
        return self.to_ms - self.from_ms


def plot_gantt(timelines: Timeline | Sequence[Timeline], plan: Plan | None, path: Path | str) -> None:
    """Stack the timelines over one time axis; where that is crowded, a stretch from within all follows, enlarged.

    Colour is the adapter (a microbatch of several is striped by their tokens), pale a forward, full a backward; black
    ticks are optimizer steps, hatching is waiting. Microbatch numbers appear where they fit. Saves SVG and PNG.
    """
    given = [timelines] if isinstance(timelines, Timeline) else list(timelines)
    shown = [explain_waits(timeline) for timeline in given]
    longest_ms = max((timeline.makespan_ms() for timeline in shown), default=0.0) or 1.0
    factor, unit = time_unit(longest_ms)
    windows = [_Window(from_ms=0.0, to_ms=longest_ms, factor=factor)]
    crowd = max((_passes_in_a_row(timeline) for timeline in shown), default=0)
    if crowd > _CROWDED:
        # Around the middle of the shortest: where one foretold thrice the time, the other shows something too.
        middle_ms = min(timeline.makespan_ms() for timeline in shown) / 2
        half_ms = min(longest_ms * _ENLARGED / crowd / 2, middle_ms)
        windows.append(_Window(from_ms=middle_ms - half_ms, to_ms=middle_ms + half_ms, factor=factor))
    ratios = [timeline.num_stages * timeline.num_replicas for timeline in shown] * len(windows)
    row_height = min(0.5, max(0.16, 9.0 / max(sum(ratios), 1)))
    height = 0.8 + 0.55 * len(ratios) + 0.3 * len(windows) + row_height * sum(ratios)
    with picture(path, width=14.0, height=height) as figure:
        panels = figure.subplots(max(len(ratios), 1), 1, squeeze=False, height_ratios=ratios or None)[:, 0]
        for number, panel in enumerate(panels[: len(ratios)]):
            timeline, window = shown[number % len(shown)], windows[number // len(shown)]
            panel.set_title(_title(timeline) if window is windows[0] else f"{timeline.source}, enlarged")
            _draw(panel, timeline, plan, window=window)
            if number % len(shown) == len(shown) - 1:
                panel.set_xlabel(f"time since the start of the run [{unit}]")
            else:
                panel.tick_params(axis="x", labelbottom=False)
        handles, labels = _legend(plan, shown)
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=max(2, min(8, 190 // (9 + max(map(len, labels))))),
            handler_map={tuple: HandlerTuple(ndivide=None, pad=0.0)},
            handlelength=2.2,
        )


def _passes_in_a_row(timeline: Timeline) -> int:
    compute = timeline.compute()
    passes = compute[np.isin(letters(compute["action"]), (*FORWARDS, *BACKWARDS))]
    return len(passes) // (timeline.num_stages * timeline.num_replicas)


def _title(timeline: Timeline) -> str:
    summary = summarize(timeline)
    return (
        f"{timeline.source} ({timeline.origin}): makespan {ms_text(summary.makespan_ms)}, "
        f"bubble ratio {percent(summary.bubble_ratio)}"
    )


def _draw(axes: Axes, timeline: Timeline, plan: Plan | None, *, window: _Window) -> None:
    num_rows = timeline.num_stages * timeline.num_replicas
    left, right = window.from_ms * window.factor, window.to_ms * window.factor
    bars = [part.within(window.from_ms, window.to_ms) for part in bars_of(timeline, plan)]
    crowded = sum(len(part.row) for part in bars) > _MOST_BARS
    if crowded:
        image = density_image(
            bars, num_rows=num_rows, from_ms=window.from_ms, until_ms=window.to_ms, num_columns=2000, row_pixels=24
        )
        axes.imshow(image, extent=(left, right, num_rows - 0.5, -0.5), aspect="auto", interpolation="nearest")
        axes.hlines(np.arange(1, num_rows) - 0.5, left, right, color="white", linewidth=3.0)
    else:
        rasterized = sum(len(part.row) for part in bars) > _MOST_VECTORS
        for part in bars:
            _add(axes, part, factor=window.factor, rasterized=rasterized)
        _add_steps_and_numbers(axes, timeline, window=window)
    names = [f"stage {stage}" for stage in range(timeline.num_stages)]
    if timeline.num_replicas > 1:
        names = [f"replica {replica}, {name}" for replica in range(timeline.num_replicas) for name in names]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(left, right)
    axes.xaxis.set_major_locator(MaxNLocator(12))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="both" if crowded else "y", visible=False)
    axes.spines["left"].set_visible(False)


def _add(axes: Axes, bars: Bars, *, factor: float, rasterized: bool) -> None:
    left, right = bars.left_ms * factor, bars.right_ms * factor
    bottom, top = (bars.row - _BAR / 2 + _BAR * side for side in (bars.low, bars.high))
    corners = np.stack(
        [np.stack([x, y], axis=1) for x, y in ((left, bottom), (left, top), (right, top), (right, bottom))], axis=1
    )
    # One path a colour: a thousand hatched patches would take seconds.
    axes.add_patch(
        PathPatch(
            MplPath.make_compound_path_from_polys(corners),
            facecolor="white" if bars.waits else bars.colour,
            edgecolor=WAIT if bars.waits else "white",
            linewidth=0.0 if bars.waits or len(left) > 800 else 0.3,
            hatch="////" if bars.waits else None,
            rasterized=rasterized,
            snap=True,
        )
    )


def _add_steps_and_numbers(axes: Axes, timeline: Timeline, *, window: _Window) -> None:
    compute = timeline.compute()
    begin_ms = float(compute["start_ms"].min()) if len(compute) else 0.0
    compute = compute[
        (compute["start_ms"] - begin_ms <= window.to_ms) & (compute["end_ms"] - begin_ms >= window.from_ms)
    ]
    row = (compute["replica"] * timeline.num_stages + compute["stage"]).to_numpy()
    left, right = ((compute[name].to_numpy() - begin_ms) * window.factor for name in ("start_ms", "end_ms"))
    found = letters(compute["action"])
    steps = found == "S"
    # A step takes next to nothing beside a pass: it gets a line, or, where lines would hide the bars, a tick above.
    sparse = steps.sum() <= _MOST_STEP_LINES * timeline.num_stages * timeline.num_replicas
    axes.vlines(
        right[steps],
        row[steps] - 0.5,
        row[steps] + (_BAR / 2 if sparse else -_BAR / 2 + 0.08),
        color="black",
        linewidth=1.2 if sparse else 0.6,
    )
    passes = np.isin(found, (*FORWARDS, *BACKWARDS))
    microbatch = compute["microbatch"].to_numpy()
    _number(axes, left[passes], right[passes], row[passes], microbatch[passes], window.span_ms() * window.factor)


def _number(
    axes: Axes,
    left: Floats,
    right: Floats,
    row: NDArray[np.int64],
    microbatch: NDArray[np.int64],
    whole: float,
) -> None:
    """Microbatch numbers where a bar is wide enough for them; all bars of a picture get them, or next to none do."""
    if not len(left) or not whole:
        return
    points = (right - left) / whole * _AXES_INCHES * 72
    needed = 4.2 * np.char.str_len(microbatch.astype(str)) + 1.0
    fits = points >= needed
    if fits.mean() < 0.5:
        return
    middles = (left + right) / 2
    # Adapters have dark colours and pale ones; on a veil the number reads on both.
    veil = {"facecolor": "white", "alpha": 0.6, "linewidth": 0.0, "pad": 0.5}
    for x, y, number in zip(middles[fits].tolist(), row[fits].tolist(), microbatch[fits].tolist(), strict=True):
        axes.text(x, y, str(number), ha="center", va="center", fontsize=6.5, color=INK, clip_on=True, bbox=veil)


def _legend(plan: Plan | None, timelines: Sequence[Timeline]) -> tuple[list[Any], list[str]]:
    handles: list[Any] = []
    labels: list[str] = []
    jobs = plan.jobs if plan is not None else ()
    for adapter, job in enumerate(jobs[:_MOST_NAMED]):
        colour = adapter_colour(adapter)
        handles.append((Patch(facecolor=tint(colour, FORWARD_TINT)), Patch(facecolor=colour)))
        labels.append(job.name)
    if len(jobs) > _MOST_NAMED:
        handles.append(Patch(facecolor="none"))
        labels.append(f"and {counted(len(jobs) - _MOST_NAMED, 'more adapter')}")
    colour = adapter_colour(0)
    sample = (Patch(facecolor=tint(colour, FORWARD_TINT)), Patch(facecolor=colour))
    handles.append(Patch(facecolor="none") if jobs else sample)
    labels.append("forward (pale), backward (full)")
    if any(np.isin(letters(timeline.compute()["action"]), OTHERS).any() for timeline in timelines):
        handles.append(Patch(facecolor=MUTED))
        labels.append("sums over replicas, evaluation")
    handles += [Patch(facecolor="black"), Patch(facecolor="white", edgecolor=WAIT, hatch="////")]
    labels += ["optimizer step", "waiting"]
    return handles, labels
