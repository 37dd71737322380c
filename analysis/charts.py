"""Charts of any numbers, lines and bars: each takes data, labels and a path, and saves SVG and PNG there."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from .style import INK, MARKERS, adapter_colour, legend_beside, picture

_LEAST_TICK_GAP = 0.12
"""Of a linear axis, so that two labels beside each other can both be read."""


def plot_curves(
    curves: Mapping[str, pd.DataFrame],
    path: Path | str,
    *,
    x_label: str,
    y_label: str,
    title: str,
    log_x: bool = False,
    from_zero: bool = True,
    level: float | None = None,
) -> None:
    """One line a name, through the points of the frame's columns `x` and `y`; labels carry the units.

    `level` draws a dashed line to compare with.
    """
    with picture(path, width=7.5, height=4.5) as figure:
        axes = figure.subplots()
        for number, (name, frame) in enumerate(curves.items()):
            axes.plot(
                frame["x"],
                frame["y"],
                color=adapter_colour(number),
                marker=MARKERS[number % len(MARKERS)],
                markersize=5,
                linewidth=1.8,
                label=name,
            )
        if level is not None:
            axes.axhline(level, color=INK, linestyle="--", linewidth=1.0)
        ticks = sorted({float(value) for frame in curves.values() for value in frame["x"]})
        if log_x:
            axes.set_xscale("log", base=2)
        if log_x or _stand_apart(ticks):
            # The values there are, and not 2.5 stages between two and three.
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        if from_zero:
            axes.set_ylim(bottom=0.0)
        if axes.get_ylim()[1] >= 1000:
            axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.set_title(title)
        if len(curves) > 1:
            legend_beside(figure, len(curves))


def plot_bars(groups: Mapping[str, Mapping[str, float]], path: Path | str, *, y_label: str, title: str) -> None:
    """Bars side by side for each group (`{data set: {system: value}}`), one colour a system; the label has the unit."""
    systems = list(dict.fromkeys(system for row in groups.values() for system in row))
    width = 0.84 / max(len(systems), 1)
    with picture(path, width=max(6.0, 2.5 + 0.28 * len(groups) * len(systems)), height=4.5) as figure:
        axes = figure.subplots()
        for number, system in enumerate(systems):
            offset = (number - (len(systems) - 1) / 2) * width
            places = [place + offset for place, row in enumerate(groups.values()) if system in row]
            heights = [row[system] for row in groups.values() if system in row]
            axes.bar(places, heights, width=0.92 * width, color=adapter_colour(number), label=system)
            for place, height in zip(places, heights, strict=True):
                axes.annotate(
                    f"{height:.2f}",
                    (place, height),
                    xytext=(0, 2),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    fontsize=7,
                    rotation=90,
                )
        axes.set_xticks(range(len(groups)), list(groups))
        axes.margins(y=0.14)
        axes.grid(axis="x", visible=False)
        axes.set_ylabel(y_label)
        axes.set_title(title)
        if systems:
            legend_beside(figure, len(systems))


def _stand_apart(ticks: Sequence[float]) -> bool:
    # Whether an axis has room for each of these, in reading order.
    gaps = np.diff(ticks)
    return bool(len(gaps)) and gaps.min() >= _LEAST_TICK_GAP * gaps.sum()
