"""What a run will take, as tables for a terminal and as plain values for --json."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..planner.memory_check import Change, Need, amount_text
from ..planner.memory_decision import MemoryDecision
from ..planner.plan import Plan
from .limits import time_limit
from .metrics import Summary
from .units import bytes_text, ms_text, percent, rate_text, tokens_text

_PARTS = (
    ("weights", "weights_bytes"),
    ("adapters", "adapters_bytes"),
    ("activa-\ntions", "activations_bytes"),
    ("head", "logits_bytes"),
    ("passing", "passing_bytes"),
    ("graphs", "graphs_bytes"),
    ("overhead", "overhead_bytes"),
)
_MOST_SHARE = 10.0
"""Shares of a device above this are told as multiples, which stay readable."""


def estimate_table(plan: Plan, decision: MemoryDecision, summary: Summary | None) -> RenderableType:
    """Memory of every stage by part, the run's time where a profile was given, the limit, and changes that help."""
    return Group(
        _memory_table(decision.need, decision.capacity_bytes()),
        *([Text(decision.share_text(plan))] if _shares(plan, decision) else []),
        *_idle(plan, decision),
        *([_time_table(plan, summary)] if summary is not None else []),
        Text(f"limit: {limit_text(plan, decision, summary)}"),
        *(Text(f"  {_change_text(change, decision)}") for change in decision.changes),
        Text(f"memory by {decision.memory_from}"),
    )


def estimate_values(plan: Plan, decision: MemoryDecision, summary: Summary | None) -> dict[str, Any]:
    """The same for --json: times in ms, memory in bytes."""
    num_steps = sum(len(job.global_batches) for job in plan.jobs)
    need, capacity_bytes = decision.need, decision.capacity_bytes()
    return {
        "memory_from": decision.memory_from,
        "num_stages": plan.num_stages,
        "num_replicas": plan.num_replicas,
        "num_microbatches": len(plan.microbatches),
        "num_tokens": plan.num_tokens(),
        "num_steps": num_steps,
        "recompute": need.recompute,
        "fits": decision.fits(),
        "capacity_bytes": capacity_bytes,
        "stages_per_gpu": decision.gpus.num_sharing(plan.num_workers()),
        "peak_memory_bytes": round(need.peak_bytes()),
        "stages": [
            {"stage": stage.stage, "peak_bytes": round(stage.peak_bytes()), "num_in_flight": stage.num_in_flight}
            | {name: round(getattr(stage, name)) for _, name in _PARTS}
            for stage in need.stages
        ],
        "makespan_ms": None if summary is None else summary.makespan_ms,
        "step_ms": None if summary is None else summary.makespan_ms / num_steps,
        "tokens_per_s": None if summary is None else summary.tokens_per_s,
        "bubble_ratio": None if summary is None else summary.bubble_ratio,
        "completion_ms": {} if summary is None else {owner.name: owner.completion_ms for owner in summary.adapters},
        "limit": limit_text(plan, decision, summary),
        "changes": [
            {
                "what": change.what,
                "peak_bytes": round(change.peak_bytes),
                "share_bytes": round(change.share_bytes),
                "fits": change.fits,
            }
            for change in decision.changes
        ],
    }


def limit_text(plan: Plan, decision: MemoryDecision, summary: Summary | None) -> str:
    """What binds the run: memory where it does not fit, else what sets its time, as far as known."""
    worst, capacity_bytes = decision.need.worst(), decision.capacity_bytes()
    if not decision.fits():
        return f"memory: stage {worst.stage} needs {bytes_text(worst.peak_bytes())}, {decision.share_text(plan)}"
    if summary is not None:
        return time_limit(summary)
    if capacity_bytes is None:
        return "not known: give --device-memory, and --profile for times"
    return f"not known without --profile; memory fits, with {percent(1 - worst.peak_bytes() / capacity_bytes)} to spare"


def _memory_table(need: Need, capacity_bytes: float | None) -> RenderableType:
    # One unit for all, so that the columns stay narrow and compare. A title of the table's own would wrap at its width.
    unit, unit_bytes = ("GiB", 2**30) if need.peak_bytes() >= 2**30 else ("MiB", 2**20)
    title = f"memory of each stage at its peak, in {unit}; recompute: {need.recompute}"
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    shown = [(name, field) for name, field in _PARTS if any(getattr(stage, field) for stage in need.stages)]
    for name in ("stage", *(name for name, _ in shown), "peak", "device", "in\nflight"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in need.stages:
        held = [getattr(stage, field) for _, field in shown] + [stage.peak_bytes()]
        share = "-" if capacity_bytes is None else _share_text(stage.peak_bytes() / capacity_bytes)
        amounts = (f"{num_bytes / unit_bytes:.2f}" for num_bytes in held)
        table.add_row(str(stage.stage), *amounts, share, str(stage.num_in_flight))
    return Group(Text(title, style="italic"), table)


def _time_table(plan: Plan, summary: Summary) -> RenderableType:
    steps = sum(len(job.global_batches) for job in plan.jobs)
    table = Table(show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_row("in all", ms_text(summary.makespan_ms))
    table.add_row(f"per optimizer step, {tokens_text(steps)} of all adapters", ms_text(summary.makespan_ms / steps))
    table.add_row("tokens/s", rate_text(summary.tokens_per_s))
    table.add_row("bubble ratio", percent(summary.bubble_ratio))
    for owner in summary.adapters:
        table.add_row(f"{owner.name} complete after", ms_text(owner.completion_ms))
    return Group(Text(f"time, by {summary.origin}", style="italic"), table)


def _share_text(share: float) -> str:
    return percent(share) if share < _MOST_SHARE else f"{share:,.0f} x"


def _change_text(change: Change, decision: MemoryDecision) -> str:
    verdict = "fits" if change.fits else "still too much"
    return f"{change.what} -> {amount_text(change, share_bytes=decision.memory.capacity_bytes)}, {verdict}"


def _idle(plan: Plan, decision: MemoryDecision) -> list[Text]:
    idle = decision.gpus.num_idle(plan.num_workers())
    if not idle:
        return []
    return [Text(f"{idle} of {idle + plan.num_workers()} GPUs idle: --stages and --replicas ask about more of them")]


def _shares(plan: Plan, decision: MemoryDecision) -> bool:
    return decision.capacity_bytes() is not None and decision.gpus.num_sharing(plan.num_workers()) > 1
