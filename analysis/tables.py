"""Numbers as tables for a terminal: every function returns something that rich can print, and prints nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..planner.plain_table import plain_table
from ..traces.counted import counted
from .compare import Comparison
from .metrics import Summary
from .units import bytes_text, difference_text, ms_text, percent, rate_text, signed_percent, tokens_text

_MOST_COLUMNS = 3
"""Fields of a sweep that a terminal of 80 columns has room for, one a column."""
_FAR_OFF = 0.2
"""Error of a makespan from which the reader is asked about the costs."""


def summary_table(summary: Summary) -> RenderableType:
    """One run: headline numbers, stages, and adapters where the plan was known."""
    title = Text(f"{summary.source}: {summary.origin}", style="italic", overflow="fold")
    parts: list[RenderableType] = [title, _headline(summary), _stages(summary)]
    if summary.adapters:
        parts.append(_adapters(summary))
    return Group(*parts)


def comparison_table(comparison: Comparison) -> RenderableType:
    """Prediction against reality: the whole run, then each kind of action on each stage."""
    simulated, measured = comparison.simulated, comparison.measured
    whole = Table(title="simulated and measured", title_justify="left")
    for name in ("", "simulated", "measured", "difference"):
        whole.add_column(name, justify="right" if name else "left")
    error = signed_percent(comparison.makespan_error())
    rows = [
        ("makespan", ms_text(simulated.makespan_ms), ms_text(measured.makespan_ms), error),
        *(
            (label, percent(ours), percent(theirs), difference_text(ours, theirs))
            for label, ours, theirs in (
                ("bubble ratio", simulated.bubble_ratio, measured.bubble_ratio),
                ("bubble ratio, steady", simulated.steady_bubble_ratio, measured.steady_bubble_ratio),
            )
        ),
        ("tokens/s", rate_text(simulated.tokens_per_s), rate_text(measured.tokens_per_s), ""),
        (
            "peak memory",
            bytes_text(simulated.peak_memory_bytes),
            bytes_text(measured.peak_memory_bytes),
            "" if comparison.peak_memory_error() is None else signed_percent(comparison.peak_memory_error()),
        ),
    ]
    for row in rows:
        whole.add_row(*row)
    kinds = Table(title="mean duration of an action", title_justify="left")
    for name in ("stage", "action", "count", "simulated", "measured", "error"):
        kinds.add_column(name, justify="left" if name == "action" else "right")
    for action in comparison.actions:
        count = str(action.num_measured)
        if action.num_measured != action.num_simulated:
            count = f"{action.num_simulated} / {action.num_measured}"
        kinds.add_row(
            str(action.stage),
            action.action,
            count,
            ms_text(action.simulated_ms),
            ms_text(action.measured_ms),
            signed_percent(action.error()),
        )
    same = "the same on every stage, span for span"
    order = comparison.first_difference or same + (", evaluations apart" if comparison.num_evaluations else "")
    notes = [Text(note) for note in (*comparison.notes(), _costs_note(comparison)) if note]
    return Group(whole, kinds, Text(f"order of actions: {order}"), *notes)


def _costs_note(comparison: Comparison) -> str:
    error = comparison.makespan_error()
    if error is None or abs(error) < _FAR_OFF:
        return ""
    return (
        f"The costs were those of {comparison.simulated.origin}. If they were not measured on this machine, with this "
        "job and this load, measure them: loraplex profile MODEL --job jobs.yaml -o profile.json"
    )


def systems_table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Rival systems on one workload; rows as under `systems` of `loraplex simulate --compare-systems --json`."""
    table = Table(title="systems on this workload, same kernels and devices for all", title_justify="left")
    for name in ("system", "schedule", "makespan", "tokens/s", "speedup", "bubble"):
        table.add_column(name, justify="left" if name in ("system", "schedule") else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["system"],
            row["schedule"],
            ms_text(row["makespan_ms"]),
            rate_text(row["tokens_per_s"]),
            f"{row['speedup']:.2f}x",
            percent(row["bubble_ratio"]),
        )
    return Group(table, *(Text(f"{row['system']}: {row['about']}") for row in rows))


def ranking_table(best: pd.DataFrame, axes: Sequence[str], *, num_points: int) -> RenderableType:
    """The best points of a sweep: what came out, and the fields that vary (`axes`), in one column if they are many."""
    title = f"best {len(best)} of {counted(num_points, 'point')}"
    table = plain_table(title=title)
    for name in ("#", "makespan", "tokens/s", "bubble", "memory", "fits"):
        table.add_column(name, justify="right", no_wrap=True)
    lasts = [name.rsplit(".", 1)[-1] for name in axes]
    short = [last if lasts.count(last) == 1 else name for name, last in zip(axes, lasts, strict=True)]
    wide = len(axes) > _MOST_COLUMNS
    for name in ["fields that vary"] if wide else short:
        table.add_column(name, justify="left" if wide else "right", overflow="fold")
    for place, row in enumerate(best.to_dict(orient="records"), start=1):
        held = None if pd.isna(row["peak_memory_bytes"]) else float(row["peak_memory_bytes"])
        values = [str(row[name]) for name in axes]
        fields = " ".join(f"{name}={value}" for name, value in zip(short, values, strict=True))
        table.add_row(
            str(place),
            ms_text(float(row["makespan_ms"])),
            rate_text(float(row["tokens_per_s"])),
            percent(float(row["bubble_ratio"])),
            bytes_text(held),
            "yes" if row["fits_in_memory"] else "no",
            *([fields] if wide else values),
        )
    return table


def _headline(summary: Summary) -> Table:
    table = Table(show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_row("makespan", ms_text(summary.makespan_ms))
    table.add_row("bubble ratio", percent(summary.bubble_ratio))
    table.add_row("  without warmup and cooldown", percent(summary.steady_bubble_ratio))
    whole_ms = summary.makespan_ms * len(summary.stages)
    for cause, cause_ms in summary.bubble_ms_by_cause.items():
        table.add_row(f"  by {cause}", percent(cause_ms / whole_ms))
    table.add_row("tokens/s", rate_text(summary.tokens_per_s))
    table.add_row("peak memory", bytes_text(summary.peak_memory_bytes))
    table.add_row("padding", percent(summary.padding_ratio))
    table.add_row("unused capacity", percent(summary.capacity_waste_ratio))
    return table


def _stages(summary: Summary) -> Table:
    table = Table(title="stages", title_justify="left")
    for name in ("stage", "busy", "bubble ratio", "steady", "peak memory"):
        table.add_column(name, justify="right")
    for stage in summary.stages:
        name = f"{stage.stage}" if summary.num_replicas == 1 else f"{stage.stage} (replica {stage.replica})"
        table.add_row(
            name,
            ms_text(stage.busy_ms),
            percent(stage.bubble_ratio),
            percent(stage.steady_bubble_ratio),
            bytes_text(stage.peak_memory_bytes),
        )
    return table


def _adapters(summary: Summary) -> Table:
    # Narrow enough for 80 columns; only names give way, and are folded, never cut.
    table = Table(title="adapters", title_justify="left")
    table.add_column("adapter", overflow="fold")
    for name in ("tokens", "micro-\nbatches", "padding", "unused\ncapacity", "complete\nafter", "times\nalone"):
        table.add_column(name, justify="right", no_wrap=True)
    for adapter in summary.adapters:
        slowdown = adapter.slowdown()
        table.add_row(
            adapter.name,
            tokens_text(adapter.num_tokens),
            tokens_text(adapter.num_microbatches),
            tokens_text(adapter.padding_tokens),
            tokens_text(adapter.capacity_waste_tokens),
            ms_text(adapter.completion_ms),
            "-" if slowdown is None else f"{slowdown:.2f}x",
        )
    return table
