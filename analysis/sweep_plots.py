"""The pictures that fit the fields of a sweep: a line for each number, bars for each choice, a map for two numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from .charts import plot_curves
from .style import adapter_colour, picture

_MOST_LINES = 6
_LEAST_OF_A_MAP = 3
"""Values that each of two fields must have for a map to show more than their lines do."""
_UNITS = {
    "_ms": "ms",
    "_tokens": "tokens",
    "gb_per_s": "GB/s",
    "_gib": "GiB",
    "_bytes": "bytes",
    "num_samples": "samples",
}
_THROUGHPUT = "throughput [real tokens/s]"


def plot_sweep(table: pd.DataFrame, axes: Sequence[str], folder: Path) -> list[str]:
    """Draw what the columns `axes` of a sweep's table allow and return the names of the SVG files.

    Each field that varies gets a picture of the median throughput of all points that share its value: a line where it
    is a number (one for each value of another field that has few), bars where it is a choice. Two fields of numbers
    with three values or more also get a map.
    """
    good = table[table["error"].isna()]
    varied = [name for name in axes if good[name].nunique() > 1]
    written = []
    for name in varied:
        stem = f"tokens-per-s-by-{_word(name)}"
        if _is_number(good[name]):
            others = [other for other in varied if other != name and good[other].nunique() <= _MOST_LINES]
            _plot_lines(good, name, folder / stem, by=others[0] if others else None)
        else:
            _plot_choices(good, name, folder / stem)
        written.append(f"{stem}.svg")
    numbers = [name for name in varied if _is_number(good[name]) and good[name].nunique() >= _LEAST_OF_A_MAP]
    if len(numbers) >= 2:
        stem = f"tokens-per-s-by-{_word(numbers[0])}-and-{_word(numbers[1])}"
        _plot_map(good, (numbers[0], numbers[1]), folder / stem)
        written.append(f"{stem}.svg")
    return written


def _label(name: str) -> str:
    # Fields carry their units in their names; what has none is counted, or is a share or factor.
    for ending, unit in _UNITS.items():
        if name.endswith(ending):
            return f"{name} [{unit}]"
    return name


def _word(name: str) -> str:
    return name.replace(".", "-")


def _is_number(column: Any) -> bool:
    # A seed is a name for a draw: neither more nor less than another.
    named = str(column.name).rsplit(".", 1)[-1] == "seed"
    return is_numeric_dtype(column) and not is_bool_dtype(column) and not named


def _plot_lines(good: pd.DataFrame, name: str, path: Path, *, by: str | None) -> None:
    parts = {"median of all points": good} if by is None else {f"{label}": own for label, own in good.groupby(by)}
    curves = {
        label: own.groupby(name)["tokens_per_s"].median().rename_axis("x").rename("y").reset_index()
        for label, own in parts.items()
    }
    title = f"Median throughput by {name}" + ("" if by is None else f",\nfor each {by}")
    plot_curves(curves, path, x_label=_label(name), y_label=_THROUGHPUT, title=title)


def _plot_choices(good: pd.DataFrame, name: str, path: Path) -> None:
    medians = good.groupby(name)["tokens_per_s"].median().sort_values()
    with picture(path, width=7.5, height=1.6 + 0.4 * len(medians)) as figure:
        panel = figure.subplots()
        panel.barh([str(label) for label in medians.index], medians.to_numpy(), color=adapter_colour(0))
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.grid(axis="y", visible=False)
        panel.set_xlabel(f"median {_THROUGHPUT}")
        panel.set_title(f"Median throughput by {name}")


def _plot_map(good: pd.DataFrame, names: tuple[str, str], path: Path) -> None:
    medians = good.pivot_table(index=names[1], columns=names[0], values="tokens_per_s", aggfunc="median")
    across, up = (np.asarray(values, dtype=float) for values in (medians.columns, medians.index))
    with picture(path, width=7.5, height=4.5) as figure:
        panel = figure.subplots()
        panel.grid(visible=False)
        mesh = panel.imshow(medians.to_numpy(dtype=float), origin="lower", aspect="auto", cmap="cividis")
        for axis, values in ((panel.xaxis, across), (panel.yaxis, up)):
            places = np.unique(np.linspace(0, len(values) - 1, min(len(values), 9)).round().astype(int))
            axis.set_ticks(places, [f"{values[place]:g}" for place in places])
        panel.set_xlabel(_label(names[0]))
        panel.set_ylabel(_label(names[1]))
        panel.set_title(f"Median throughput by {names[0]}\nand {names[1]}")
        figure.colorbar(mesh, ax=panel, label=_THROUGHPUT, format="{x:,.0f}")
