"""The figures, the table and the picture of `loraplex bench pipeline`: every system foretold and executed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from rich.table import Table

from ..planner.systems import SystemRun
from ..traces.files import write_atomically
from ..traces.timeline import Timeline
from .metrics import summarize
from .style import adapter_colour, label_bars, picture

MAKESPAN_GOAL, BUBBLE_GOAL = 0.05, 0.02
"""Largest errors aimed for: of the makespan as a share, of the bubble ratio as a difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRow:
    """One system."""

    system: str
    schedule: str
    num_microbatches: int
    num_tokens: int
    """Real ones."""
    measured_makespan_ms: float
    simulated_makespan_ms: float
    measured_bubble_ratio: float
    simulated_bubble_ratio: float
    tokens_per_s: float
    """Measured, of real tokens."""
    simulated_tokens_per_s: float
    makespan_error: float
    """Simulated over measured, minus 1."""
    bubble_ratio_difference: float
    """Simulated minus measured."""
    measured_busy_ms: tuple[float, ...]
    """By stage."""
    simulated_busy_ms: tuple[float, ...]


def pipeline_row(system: SystemRun, *, schedule: str, simulated: Timeline, measured: Timeline) -> PipelineRow:
    """What two timelines of one system say."""
    foretold, happened = summarize(simulated), summarize(measured)
    return PipelineRow(
        system=system.name,
        schedule=schedule,
        num_microbatches=sum(bool(held.samples) for plan in system.plans for held in plan.microbatches),
        num_tokens=system.num_tokens,
        measured_makespan_ms=happened.makespan_ms,
        simulated_makespan_ms=foretold.makespan_ms,
        measured_bubble_ratio=happened.bubble_ratio,
        simulated_bubble_ratio=foretold.bubble_ratio,
        tokens_per_s=system.num_tokens / happened.makespan_ms * 1e3,
        simulated_tokens_per_s=system.num_tokens / foretold.makespan_ms * 1e3,
        makespan_error=foretold.makespan_ms / happened.makespan_ms - 1.0,
        bubble_ratio_difference=foretold.bubble_ratio - happened.bubble_ratio,
        measured_busy_ms=tuple(stage.busy_ms for stage in happened.stages),
        simulated_busy_ms=tuple(stage.busy_ms for stage in foretold.stages),
    )


def pipeline_summary(rows: Sequence[PipelineRow]) -> dict[str, object]:
    """The verdict: largest errors beside their goals, and the order of the systems, fastest first."""
    fastest = sorted(rows, key=lambda row: -row.tokens_per_s)
    foretold = [row.simulated_tokens_per_s for row in fastest]
    return {
        "worst_makespan_error": max(abs(row.makespan_error) for row in rows),
        "makespan_goal": MAKESPAN_GOAL,
        "worst_bubble_ratio_difference": max(abs(row.bubble_ratio_difference) for row in rows),
        "bubble_ratio_goal": BUBBLE_GOAL,
        "measured_order": [row.system for row in fastest],
        "simulated_order": [row.system for row in sorted(rows, key=lambda row: -row.simulated_tokens_per_s)],
        # Systems that make the same plan are foretold to be equally fast: either may come first.
        "same_order": foretold == sorted(foretold, reverse=True),
    }


def pipeline_records(rows: Sequence[PipelineRow]) -> list[dict[str, object]]:
    """Flat records for JSON and CSV; busy times as one column a stage."""
    records = []
    for row in rows:
        record = asdict(row)
        for kind in ("measured_busy_ms", "simulated_busy_ms"):
            record |= {f"{kind}_{stage}": ms for stage, ms in enumerate(record.pop(kind))}
        records.append(record)
    return records


def pipeline_document(rows: Sequence[PipelineRow], *, facts: Mapping[str, object], command: str) -> dict[str, object]:
    """All of it: the command, under which conditions it ran, the verdict, the records."""
    return {"command": command, **facts, "summary": pipeline_summary(rows), "records": pipeline_records(rows)}


def write_pipeline(document: Mapping[str, object], rows: Sequence[PipelineRow], folder: Path) -> Path:
    """`pipeline-GPU-DATE.json`, `.csv` and the picture; their common path without the end."""
    slug = "-".join(str(document["gpu"]).lower().split())
    stem = folder / f"pipeline-{slug}-{document['date']}"
    write_atomically(stem.with_name(f"{stem.name}.json"), json.dumps(document, indent=1) + "\n")
    table = pd.DataFrame(pipeline_records(rows)).to_csv(index=False)
    write_atomically(stem.with_name(f"{stem.name}.csv"), table)
    plot_pipeline(rows, stem, title=f"{document['gpu']}: one plan a system, measured and simulated")
    return stem


def pipeline_table(rows: Sequence[PipelineRow], *, title: str) -> Table:
    """For a terminal."""
    # Narrow enough for 80 columns; only names give way, and are folded, never cut.
    table = Table(title=title, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("system", overflow="fold")
    for name in (
        "micro-\nbatches",
        "tokens/s",
        "makespan",
        "simu-\nlated",
        "error",
        "bubble",
        "simu-\nlated",
        "off by",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.system,
            str(row.num_microbatches),
            f"{row.tokens_per_s:,.0f}",
            f"{row.measured_makespan_ms / 1e3:.1f} s",
            f"{row.simulated_makespan_ms / 1e3:.1f} s",
            f"{row.makespan_error:+.1%}",
            f"{row.measured_bubble_ratio:.1%}",
            f"{row.simulated_bubble_ratio:.1%}",
            f"{100 * row.bubble_ratio_difference:+.1f}",
        )
    return table


def plot_pipeline(rows: Sequence[PipelineRow], path: Path, *, title: str) -> None:
    """Throughput and bubble ratio of every system, measured beside simulated."""
    panels = (
        (
            "throughput [thousand real tokens/s]",
            [(row.tokens_per_s / 1e3, row.simulated_tokens_per_s / 1e3) for row in rows],
            "{:.1f}",
        ),
        (
            "bubble ratio [% of all stages' time]",
            [(100 * row.measured_bubble_ratio, 100 * row.simulated_bubble_ratio) for row in rows],
            "{:.1f}",
        ),
    )
    with picture(path, width=10.0, height=4.5) as figure:
        for axes, (label, pairs, form) in zip(figure.subplots(1, 2), panels, strict=True):
            for number, name in enumerate(("measured", "simulated")):
                places = [place + (number - 0.5) * 0.4 for place in range(len(rows))]
                heights = [pair[number] for pair in pairs]
                axes.bar(places, heights, width=0.38, color=adapter_colour(number), label=name)
                label_bars(axes, places, heights, [form.format(height) for height in heights])
            axes.set_xticks(range(len(rows)), [row.system for row in rows], rotation=20, ha="right")
            axes.margins(y=0.12)
            axes.grid(axis="x", visible=False)
            axes.set_ylabel(label)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        figure.suptitle(title)
