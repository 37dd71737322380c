"""The picture and the table of `loraplex bench simulator`: how fast Programs are replayed, by their size."""

from pathlib import Path

import pandas as pd
from rich.table import Table

from .style import adapter_colour, picture

_APART = ("build", "sweep")
"""Beginnings of what is measured beside the replays."""


def plot_speed(rows: pd.DataFrame, path: Path) -> None:
    """Actions per second of every method over the Program's size; columns as in simulator/bench.py's BenchRow."""
    replays = rows[~rows["method"].str.startswith(_APART)]
    with picture(path, width=8.0, height=4.5) as figure:
        axes = figure.subplots()
        for number, (method, own) in enumerate(replays.groupby("method", sort=False)):
            ordered = own.sort_values("num_actions")
            axes.plot(
                ordered["num_actions"],
                ordered["actions_per_s"],
                color=adapter_colour(number),
                marker="os^Dv"[number % 5],
                label=str(method),
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("size of the Program [actions]")
        axes.set_ylabel("speed [actions per second of CPU]")
        axes.set_title("Replay speed by size of the Program")
        figure.legend(loc="outside right upper")


def speed_table(rows: pd.DataFrame) -> Table:
    """All rows, for a terminal."""
    table = Table(title="replay speed", title_justify="left")
    for name in ("stages", "microbatches", "method", "seconds", "actions/s", "peak memory"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in rows.to_dict(orient="records"):
        peak = row["peak_memory_bytes"]
        table.add_row(
            f"{row['num_stages']}",
            f"{row['num_microbatches']:,}",
            str(row["method"]),
            f"{row['seconds']:.5f}",
            f"{row['actions_per_s']:,.0f}",
            "-" if pd.isna(peak) else f"{peak / 2**20:,.1f} MiB",
        )
    return table
