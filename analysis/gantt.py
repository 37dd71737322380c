"""Gantt pictures: what every stage did when, one panel a timeline, all on one time axis."""

from collections.abc import Sequence
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
from ..traces.timeline import Timeline
from .actions import BACKWARDS, FORWARDS, letters
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
_MOST_NAMED = 12
"""Adapters that the legend names; there are not more colours to tell apart."""


def plot_gantt(timelines: Timeline | Sequence[Timeline], plan: Plan | None, path: Path | str) -> None:
    """Stack the timelines over one time axis.

    Colour is the adapter (a microbatch of several is striped by their tokens), pale a forward, full a backward; black
    ticks are optimizer steps, hatching is waiting. Microbatch numbers appear where they fit. Saves SVG and PNG.
    """
    shown = [timelines] if isinstance(timelines, Timeline) else list(timelines)
    rows = sum(timeline.num_stages * timeline.num_replicas for timeline in shown)
    longest_ms = max((timeline.makespan_ms() for timeline in shown), default=0.0)
    factor, unit = time_unit(longest_ms)
    row_height = min(0.5, max(0.16, 7.0 / max(rows, 1)))
    height = 1.1 + len(shown) * 0.55 + rows * row_height
    with picture(path, width=14.0, height=height) as figure:
        ratios = [timeline.num_stages * timeline.num_replicas for timeline in shown]
        panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        for panel, timeline in zip(panels, shown, strict=True):
            _draw(panel, timeline, plan, factor=factor, longest_ms=longest_ms, width_inches=12.6)
        panels[-1].set_xlabel(f"time since the start of the run [{unit}]")
        handles, labels = _legend(plan)
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=min(len(handles), 8),
            handler_map={tuple: HandlerTuple(ndivide=None, pad=0.0)},
            handlelength=2.2,
        )


def _draw(
    axes: Axes, timeline: Timeline, plan: Plan | None, *, factor: float, longest_ms: float, width_inches: float
) -> None:
    timeline = explain_waits(timeline)
    summary = summarize(timeline)
    axes.set_title(
        f"{timeline.source} ({timeline.origin}): makespan {ms_text(summary.makespan_ms)}, "
        f"bubble ratio {percent(summary.bubble_ratio)}"
    )
    num_rows = timeline.num_stages * timeline.num_replicas
    bars = bars_of(timeline, plan)
    whole = longest_ms * factor or 1.0
    if len(timeline.frame) > _MOST_BARS:
        image = density_image(bars, num_rows=num_rows, until_ms=longest_ms, num_columns=2000, row_pixels=24)
        axes.imshow(image, extent=(0.0, whole, num_rows - 0.5, -0.5), aspect="auto", interpolation="nearest")
        axes.hlines(np.arange(1, num_rows) - 0.5, 0.0, whole, color="white", linewidth=3.0)
    else:
        for part in bars:
            _add(axes, part, factor=factor, rasterized=len(timeline.frame) > _MOST_VECTORS)
        _add_steps_and_numbers(axes, timeline, factor=factor, whole=whole, width_inches=width_inches)
    names = [f"stage {stage}" for stage in range(timeline.num_stages)]
    if timeline.num_replicas > 1:
        names = [f"replica {replica}, {name}" for replica in range(timeline.num_replicas) for name in names]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0.0, whole)
    axes.xaxis.set_major_locator(MaxNLocator(12))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="both" if len(timeline.frame) > _MOST_BARS else "y", visible=False)
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


def _add_steps_and_numbers(axes: Axes, timeline: Timeline, *, factor: float, whole: float, width_inches: float) -> None:
    compute = timeline.compute()
    begin_ms = float(compute["start_ms"].min()) if len(compute) else 0.0
    row = (compute["replica"] * timeline.num_stages + compute["stage"]).to_numpy()
    left, right = ((compute[name].to_numpy() - begin_ms) * factor for name in ("start_ms", "end_ms"))
    found = letters(compute["action"])
    steps = found == "S"
    # A step takes next to nothing beside a pass: give it a line that can be seen, with a head above the bars.
    axes.vlines(
        right[steps],
        row[steps] - 0.5,
        row[steps] + _BAR / 2,
        color="black",
        linewidth=1.2 if steps.sum() < 100 else 0.6,
        rasterized=len(timeline.frame) > _MOST_VECTORS,
    )
    passes = np.isin(found, (*FORWARDS, *BACKWARDS))
    microbatch = compute["microbatch"].to_numpy()
    _number(axes, left[passes], right[passes], row[passes], microbatch[passes], whole, width_inches)


def _number(
    axes: Axes,
    left: Floats,
    right: Floats,
    row: NDArray[np.int64],
    microbatch: NDArray[np.int64],
    whole: float,
    inches: float,
) -> None:
    """Microbatch numbers where a bar is wide enough for them; all bars of a picture get them, or next to none do."""
    if not len(left) or not whole:
        return
    points = (right - left) / whole * inches * 72
    needed = 4.2 * np.char.str_len(microbatch.astype(str)) + 1.0
    fits = points >= needed
    if fits.mean() < 0.5:
        return
    middles = (left + right) / 2
    for x, y, number in zip(middles[fits].tolist(), row[fits].tolist(), microbatch[fits].tolist(), strict=True):
        axes.text(x, y, str(number), ha="center", va="center", fontsize=6.5, color=INK, clip_on=True)


def _legend(plan: Plan | None) -> tuple[list[Any], list[str]]:
    handles: list[Any] = []
    labels: list[str] = []
    jobs = plan.jobs if plan is not None else ()
    for adapter, job in enumerate(jobs[:_MOST_NAMED]):
        colour = adapter_colour(adapter)
        handles.append((Patch(facecolor=tint(colour, FORWARD_TINT)), Patch(facecolor=colour)))
        labels.append(job.name)
    if len(jobs) > _MOST_NAMED:
        handles.append(Patch(facecolor="none"))
        labels.append(f"and {len(jobs) - _MOST_NAMED} more adapters")
    colour = MUTED if jobs else adapter_colour(0)
    handles.append((Patch(facecolor=tint(colour, FORWARD_TINT)), Patch(facecolor=colour)))
    labels.append("forward (pale), backward (full)")
    handles += [Patch(facecolor="black"), Patch(facecolor="white", edgecolor=WAIT, hatch="////")]
    labels += ["optimizer step", "waiting"]
    return handles, labels
