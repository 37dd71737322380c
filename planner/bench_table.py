"""The summary of a planner benchmark for the terminal."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from .bench import BenchResult


def summary_table(result: BenchResult) -> Table:
    """One row per region and strategy."""
    table = Table(box=SIMPLE_HEAD)
    for column in ("region", "strategy"):
        table.add_column(column, no_wrap=True)
    for column in ("workloads", "mean gap", "worst", "at bound", "median s", "worst s"):
        table.add_column(column, justify="right")
    for row in result.summary():
        table.add_row(
            str(row["region"]),
            str(row["strategy"]),
            str(row["workloads"]),
            f"{row['mean_gap']:.2%}",
            f"{row['worst_gap']:.2%}",
            str(row["at_bound"]),
            f"{row['median_seconds']:.3f}",
            f"{row['worst_seconds']:.3f}",
        )
    return table
