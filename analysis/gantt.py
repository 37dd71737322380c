"""Gantt pictures: what every stage did when, one panel a timeline, all on one time axis."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..planner.plan import Plan
from ..traces.timeline import Timeline
from .actions import BACKWARDS, FORWARDS, letters
from .explain import explain_waits
from .metrics import summarize
from .style import INK, MUTED, WAIT, adapter_colour, picture, time_unit, tint
from .units import ms_text, percent

Floats = NDArray[np.float64]
_BAR = 0.84
"""Height of a stage's bar where rows are 1 apart."""
_MANY = 2500
"""Spans above which an SVG holds them as an image: a browser would crawl."""
_MOST_NAMED = 12
"""Adapters that the legend names; there are not more colours to tell apart."""
_FORWARD_TINT = 0.55


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
    frame = timeline.frame
    starts = frame["start_ms"].to_numpy()
    begin_ms = float(timeline.compute()["start_ms"].min()) if len(timeline.compute()) else 0.0
    row = (frame["replica"] * timeline.num_stages + frame["stage"]).to_numpy().astype(np.float64)
    left, right = (starts - begin_ms) * factor, (frame["end_ms"].to_numpy() - begin_ms) * factor
    kinds, found = frame["kind"].to_numpy(), letters(frame["action"])
    microbatch = frame["microbatch"].to_numpy()

    waits = kinds == "wait"
    _add(axes, left[waits], right[waits], row[waits], colour="white", hatch="////")
    compute = kinds == "compute"
    for shade, chosen in ((_FORWARD_TINT, FORWARDS), (0.0, BACKWARDS)):
        of_kind = compute & np.isin(found, chosen)
        _add_shares(axes, left[of_kind], right[of_kind], row[of_kind], microbatch[of_kind], plan=plan, shade=shade)
    other = compute & np.isin(found, ("R", "E"))
    _add(axes, left[other], right[other], row[other], colour=MUTED)
    steps = compute & (found == "S")
    # A step takes next to nothing beside a pass: give it a line that can be seen, and a head where lines are dense.
    axes.vlines(
        right[steps], row[steps] - 0.5, row[steps] + _BAR / 2, color="black", linewidth=_step_width(steps.sum())
    )
    numbered = compute & np.isin(found, (*FORWARDS, *BACKWARDS))
    _number(
        axes, left[numbered], right[numbered], row[numbered], microbatch[numbered], longest_ms * factor, width_inches
    )

    for collection in axes.collections if len(frame) > _MANY else ():
        collection.set_rasterized(True)
    names = [f"stage {stage}" for stage in range(timeline.num_stages)]
    if timeline.num_replicas > 1:
        names = [f"replica {replica}, {name}" for replica in range(timeline.num_replicas) for name in names]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0.0, longest_ms * factor or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(12))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def _add_shares(
    axes: Axes,
    left: Floats,
    right: Floats,
    row: Floats,
    microbatch: NDArray[np.int64],
    *,
    plan: Plan | None,
    shade: float,
) -> None:
    """Bars cut into stripes, one for each adapter of the microbatch, as high as its share of the tokens."""
    if plan is None:
        _add(axes, left, right, row, colour=tint(adapter_colour(0), shade))
        return
    stripes: dict[int, list[tuple[int, float, float]]] = {}
    contents = [batch.adapter_tokens() for batch in plan.microbatches]
    for place, index in enumerate(microbatch.tolist()):
        shares = contents[index] if 0 <= index < len(contents) else ()
        total, below = sum(tokens for _, tokens in shares), 0
        for adapter, tokens in shares:
            stripes.setdefault(adapter, []).append((place, below / total, (below + tokens) / total))
            below += tokens
    for adapter, parts in sorted(stripes.items()):
        places = np.array([place for place, _, _ in parts])
        low, high = (np.array([part[side] for part in parts]) for side in (1, 2))
        _add(
            axes,
            left[places],
            right[places],
            row[places],
            colour=tint(adapter_colour(adapter), shade),
            low=low,
            high=high,
        )


def _add(
    axes: Axes,
    left: Floats,
    right: Floats,
    row: Floats,
    *,
    colour: str,
    hatch: str | None = None,
    low: Floats | float = 0.0,
    high: Floats | float = 1.0,
) -> None:
    if not len(left):
        return
    bottom, top = row - _BAR / 2 + _BAR * low, row - _BAR / 2 + _BAR * high
    corners = np.stack(
        [np.stack([x, y], axis=1) for x, y in ((left, bottom), (left, top), (right, top), (right, bottom))], axis=1
    )
    axes.add_collection(
        PolyCollection(
            list(corners),
            facecolors=colour,
            edgecolors=WAIT if hatch else "white",
            linewidths=0.0 if hatch or len(left) > 800 else 0.3,
            hatch=hatch,
        ),
        autolim=False,
    )


def _number(
    axes: Axes, left: Floats, right: Floats, row: Floats, microbatch: NDArray[np.int64], whole: float, inches: float
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


def _step_width(num_steps: int) -> float:
    return 1.2 if num_steps < 100 else 0.6


def _legend(plan: Plan | None) -> tuple[list[Any], list[str]]:
    handles: list[Any] = []
    labels: list[str] = []
    jobs = plan.jobs if plan is not None else ()
    for adapter, job in enumerate(jobs[:_MOST_NAMED]):
        colour = adapter_colour(adapter)
        handles.append((Patch(facecolor=tint(colour, _FORWARD_TINT)), Patch(facecolor=colour)))
        labels.append(job.name)
    if len(jobs) > _MOST_NAMED:
        handles.append(Patch(facecolor="none"))
        labels.append(f"and {len(jobs) - _MOST_NAMED} more adapters")
    colour = MUTED if jobs else adapter_colour(0)
    handles.append((Patch(facecolor=tint(colour, _FORWARD_TINT)), Patch(facecolor=colour)))
    labels.append("forward (pale), backward (full)")
    handles += [Patch(facecolor="black"), Patch(facecolor="white", edgecolor=WAIT, hatch="////")]
    labels += ["optimizer step", "waiting"]
    return handles, labels
