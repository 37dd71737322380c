"""The summary of a planner benchmark for the terminal."""

from collections.abc import Sequence

from rich.table import Table

from .bench import BenchResult
from .bench_exact import ExactRecord
from .plain_table import plain_table


def summary_table(result: BenchResult) -> Table:
    """One row per region and strategy."""
    table = plain_table()
    for column in ("region", "strategy"):
        table.add_column(column, no_wrap=True)
    for column in ("workloads", "mean gap", "worst", "at bound", "median s", "worst s", "cpu s"):
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
            f"{row['worst_cpu_seconds']:.3f}",
        )
    return table


def study_table(records: Sequence[ExactRecord]) -> Table:
    """Whose fault a gap is: small workloads against their proved optimum."""
    table = plain_table(title="small workloads, solved exactly")
    table.add_column("family", no_wrap=True)
    for column in ("stages", "proved", "plan optimal", "bound tight", "plan above", "bound below"):
        table.add_column(column, justify="right")
    for record in records:
        table.add_row(
            record.family,
            str(record.num_stages),
            f"{record.proved}/{record.workloads}",
            str(record.plan_optimal),
            str(record.bound_tight),
            f"{record.slots_above_optimum / max(1, record.optimum):.1%}",
            f"{record.optimum_above_bound / max(1, record.optimum):.1%}",
        )
    return table
