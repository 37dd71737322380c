"""The report's numbers as HTML: cards, legend and tables."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from ..planner.plan import Plan
from ..traces.counted import counted
from ..traces.errors import TraceError
from ..traces.ranking import Ranking
from .causes import CAUSES
from .compare import Comparison
from .metrics import Summary
from .style import CAUSE_HATCHES, FORWARD_TINT, MUTED, adapter_colour, tint
from .units import bytes_text, ms_text, percent, rate_text, signed_percent, tokens_text

_WAITING = {
    "": "#ececec",
    "/": "repeating-linear-gradient(135deg, #9a9a9a 0 1.5px, #fff 1.5px 5px)",
    "\\": "repeating-linear-gradient(45deg, #9a9a9a 0 1.5px, #fff 1.5px 5px)",
    "|": "repeating-linear-gradient(90deg, #9a9a9a 0 1.5px, #fff 1.5px 5px)",
    "x": "conic-gradient(#9a9a9a 25%, #fff 0 50%, #9a9a9a 0 75%, #fff 0) 0 0 / 6px 6px",
}
"""Backgrounds of the legend that look like report.js hatches waits."""


def cards(summaries: Sequence[Summary], comparison: Comparison | None) -> str:
    """Headline numbers: the measured ones where there are any, with what was foretold below."""
    main = summaries[-1]
    foretold = comparison.simulated if comparison is not None else None

    def note(text: str) -> str:
        return f"simulated {text}" if foretold is not None else main.source

    entries = [
        ("makespan", ms_text(main.makespan_ms), note(ms_text(foretold.makespan_ms) if foretold else "")),
        ("bubble ratio", percent(main.bubble_ratio), note(percent(foretold.bubble_ratio) if foretold else "")),
        (
            "steady bubble ratio",
            percent(main.steady_bubble_ratio),
            note(percent(foretold.steady_bubble_ratio) if foretold else ""),
        ),
    ]
    if comparison is not None:
        entries.insert(1, ("prediction error", signed_percent(comparison.makespan_error()), "simulated / measured"))
    if main.tokens_per_s is not None:
        entries += [
            ("tokens/s", rate_text(main.tokens_per_s), f"{tokens_text(main.num_tokens)} real tokens"),
            ("padding", percent(main.padding_ratio), "of padded tokens"),
            (
                "unused capacity",
                percent(main.capacity_waste_ratio),
                f"of {counted(main.num_microbatches or 0, 'microbatch')}",
            ),
        ]
    memory = [(summary.source, summary.peak_memory_bytes) for summary in summaries if summary.peak_memory_bytes]
    if memory:
        entries.append(("peak memory", bytes_text(memory[-1][1]), f"of one stage, {memory[-1][0]}"))
    items = (
        f'<li><div class="name">{escape(name)}</div><div class="value">{escape(value)}</div>'
        f'<div class="note">{escape(below)}</div></li>'
        for name, value, below in entries
    )
    return '<ul class="cards">' + "".join(items) + "</ul>"


def misfit(facts: Mapping[str, object]) -> str:
    """A warning where summary.json says that the run would not fit into the devices' memory."""
    found = facts.get("first_misfit")
    if not isinstance(found, dict):
        return ""
    needed, held = bytes_text(found.get("needed_bytes")), bytes_text(found.get("capacity_bytes"))
    text = f"Stage {found.get('stage')} would need {needed} at {ms_text(found.get('ms'))}; its device has {held}."
    return f'<p class="warning"><strong>Does not fit into memory.</strong> {escape(text)}</p>'


def legend(plan: Plan | None, summaries: Sequence[Summary]) -> str:
    """What the colours of the interactive timeline mean."""
    names = [job.name for job in plan.jobs] if plan is not None else ["forward and backward"]
    swatches = [
        (
            f"linear-gradient(90deg, {tint(adapter_colour(adapter), FORWARD_TINT)} 50%, {adapter_colour(adapter)} 50%)",
            name,
        )
        for adapter, name in enumerate(names)
    ]
    swatches += [("none", "forward pale, backward full"), ("#000", "optimizer step")]
    found = {cause for summary in summaries for cause in summary.bubble_ms_by_cause}
    others = [name for cause, name in (("reduce", "sums over replicas"), ("evaluate", "evaluation")) if cause in found]
    swatches += [(MUTED, ", ".join(others))] if others else []
    waits: dict[str, list[str]] = {}
    for cause in (*CAUSES, *sorted(found - set(CAUSES))):
        if cause in found and cause not in ("reduce", "evaluate"):
            waits.setdefault(CAUSE_HATCHES.get(cause, ""), []).append(cause)
    swatches += [(_WAITING[hatch], f"waiting: {', '.join(causes)}") for hatch, causes in waits.items()]
    items = (
        f'<li><span class="swatch" style="background: {background}"></span>{escape(name)}</li>'
        for background, name in swatches
    )
    return '<ul class="legend">' + "".join(items) + "</ul>"


def adapter_table(summaries: Sequence[Summary]) -> str:
    """Tokens and waste of each adapter, which are the plan's, and its completion in each timeline."""
    head = ["adapter", "tokens", "microbatches", "padding tokens", "unused capacity [tokens]", "stall slots"]
    rows = [
        [
            adapter.name,
            tokens_text(adapter.num_tokens),
            tokens_text(adapter.num_microbatches),
            tokens_text(adapter.padding_tokens),
            tokens_text(adapter.capacity_waste_tokens),
            f"{adapter.stall_slots:.3g}",
        ]
        for adapter in summaries[0].adapters
    ]
    for summary in summaries:
        head.append(f"complete after, {summary.source}")
        for row, adapter in zip(rows, summary.adapters, strict=True):
            row.append(ms_text(adapter.completion_ms))
        if any(adapter.alone_ms for adapter in summary.adapters):
            head += [f"alone, {summary.source}", "slowdown"]
            for row, adapter in zip(rows, summary.adapters, strict=True):
                slowdown = adapter.slowdown()
                row += [ms_text(adapter.alone_ms), "-" if slowdown is None else f"{slowdown:.2f}x"]
    return table(head, rows, caption="Adapters and waste")


def ranking_table(ranking: Ranking) -> str:
    """Adapters of the same data, the best first, and each setting in which they differ."""
    names = list(ranking.adapters[0].settings)
    rows = [
        [row.name, str(place), f"{row.loss:.4f}", tokens_text(row.step), *map(row.setting_text, names)]
        for place, row in enumerate(ranking.adapters, start=1)
    ]
    return table(["adapter", "place", ranking.by, "at step", *names], rows, caption="Adapters of the same data")


def stage_table(summary: Summary) -> str:
    """Busy time, bubbles and memory of each stage."""
    causes = list(summary.bubble_ms_by_cause)
    tracked = any(stage.peak_memory_bytes is not None for stage in summary.stages)
    rows = [
        [
            f"{summary.source}, "
            + (f"replica {stage.replica}, " if summary.num_replicas > 1 else "")
            + f"stage {stage.stage}",
            ms_text(stage.busy_ms),
            percent(stage.bubble_ratio),
            percent(stage.steady_bubble_ratio),
            *(percent(stage.bubble_ms_by_cause.get(cause, 0.0) / summary.makespan_ms) for cause in causes),
            *([bytes_text(stage.peak_memory_bytes)] if tracked else []),
        ]
        for stage in summary.stages
    ]
    head = ["stage", "busy", "bubble ratio", "steady", *(f"by {cause}" for cause in causes)]
    head += ["peak memory"] if tracked else []
    return table(head, rows, caption=f"Stages, {summary.source}")


def action_table(comparison: Comparison) -> str:
    """Mean duration of each kind of action on each stage, simulated and measured."""
    rows = [
        [
            f"stage {action.stage}, {action.action}",
            tokens_text(action.num_measured),
            ms_text(action.simulated_ms),
            ms_text(action.measured_ms),
            signed_percent(action.error()),
        ]
        for action in comparison.actions
    ]
    return table(["action", "count", "simulated mean", "measured mean", "error"], rows, caption="Durations of actions")


def system_table(systems: Sequence[Mapping[str, object]]) -> str:
    """The systems that `loraplex simulate --compare-systems` replayed."""
    rows = [
        [
            str(system["system"]),
            str(system["schedule"]),
            ms_text(_number(system, "makespan_ms")),
            rate_text(_number(system, "tokens_per_s")),
            f"{_number(system, 'speedup'):.2f}x",
            percent(_number(system, "bubble_ratio")),
            str(system["about"]),
        ]
        for system in systems
    ]
    head = ["system", "schedule", "makespan", "tokens/s", "speed-up", "bubble ratio", "what it does"]
    return table(head, rows, caption="Systems on this workload", kind="prose-last")


def _number(system: Mapping[str, object], name: str) -> float:
    value = system[name]
    if not isinstance(value, int | float):
        raise TraceError(f"summary.json: {name}={value!r} of system {system['system']!r} must be a number")
    return float(value)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str, kind: str = "figures") -> str:
    """A table that scrolls sideways where it does not fit; `kind` is its class in report.css."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'
    )
