"""Ways to lay a job file on GPUs, best first, as a table for a terminal and as plain values for --json."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ..planner.plain_table import plain_table
from ..traces.costs import RecomputeMode
from .units import bytes_text, percent, rate_text


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviceRow:
    """One way, as a job file says it, and how it would go."""

    num_stages: int
    num_replicas: int
    microbatch_tokens: int
    recompute: RecomputeMode
    is_job_files: bool
    """Whether the job file says so already."""
    fits: bool
    peak_bytes: float
    """Of the stage that takes most."""
    tokens_per_s: float
    bubble_ratio: float

    def job_file_lines(self) -> str:
        """What a job file has to say for it."""
        return (
            f"pipeline: {{stages: {self.num_stages}, replicas: {self.num_replicas}}}\n"
            f"microbatch_tokens: {self.microbatch_tokens}\nrecompute: {self.recompute}"
        )


def advice_table(rows: Sequence[AdviceRow], *, title: str, notes: Sequence[str], top: int) -> RenderableType:
    """The `top` first rows and the job file's own, what to write into the job file, and notes."""
    table = plain_table(title=title)
    shown = [row for place, row in enumerate(rows) if place < top or row.is_job_files]
    remarks = [", ".join(_remarks(row)) for row in shown]
    for name in ("stages x\nreplicas", "microbatch\ntokens", "recompute", "tokens/s", "bubbles", "peak of\na GPU"):
        table.add_column(name, justify="left" if name == "recompute" else "right", no_wrap=True)
    if any(remarks):
        table.add_column("", no_wrap=True)
    for row, remark in zip(shown, remarks, strict=True):
        table.add_row(
            f"{row.num_stages} x {row.num_replicas}",
            f"{row.microbatch_tokens:,}",
            row.recompute,
            rate_text(row.tokens_per_s),
            percent(row.bubble_ratio),
            bytes_text(row.peak_bytes),
            *([remark] if any(remarks) else []),
        )
    best = next((row for row in rows if row.fits), None)
    if best is None:
        verdict = "none of them fits; loraplex estimate tells what would help"
    elif best.is_job_files:
        verdict = "the job file has the best of them already"
    else:
        verdict = f"for the job file:\n{best.job_file_lines()}"
    return Group(table, *map(Text, notes), Text(verdict))


def advice_values(rows: Sequence[AdviceRow]) -> list[dict[str, Any]]:
    """The same for --json, all of them, best first; memory in bytes."""
    return [asdict(row) | {"peak_bytes": round(row.peak_bytes)} for row in rows]


def _remarks(row: AdviceRow) -> list[str]:
    return [*([] if row.fits else ["does not fit"]), *(["as now"] if row.is_job_files else [])]
