"""The Gantt picture says what ran, in the colours of its adapters."""

import re
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from loraplex.analysis.gantt import plot_gantt
from loraplex.analysis.style import MUTED, adapter_colour, tint
from loraplex.planner.plan import Plan
from loraplex.traces.timeline import Span, SpanKind, Timeline

from .conftest import MakeTimeline


def texts(path: Path) -> list[str]:
    """All texts of an SVG."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())


def colours(path: Path) -> set[tuple[int, ...]]:
    """All colours of a PNG."""
    return {
        tuple(pixel) for pixel in np.unique((imread(path)[..., :3].reshape(-1, 3) * 255).round(), axis=0).astype(int)
    }


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(round(channel * 255) for channel in to_rgb(colour))


def test_two_timelines_share_one_time_axis_and_one_legend(
    make_1f1b: MakeTimeline, two_adapters: Plan, tmp_path: Path
) -> None:
    simulated = make_1f1b(num_stages=2, num_microbatches=3)
    measured = make_1f1b(num_stages=2, num_microbatches=3, backward_ms=3.0, source="measured")
    plot_gantt([simulated, measured], two_adapters, tmp_path / "gantt")
    found = texts(tmp_path / "gantt.svg")
    for text in (
        "simulated (by hand): makespan 12.0 ms, bubble ratio 25.0 %",
        "measured (by hand): makespan 16.0 ms, bubble ratio 25.0 %",
        "time since the start of the run [ms]",
        "maths",
        "papers",
        "optimizer step",
        "waiting",
    ):
        assert found.count(text) == 1, text
    assert found.count("stage 0") == found.count("stage 1") == 2
    # Bars are wide here, so each forward and backward carries its microbatch.
    assert [found.count(f"{index}") >= 8 for index in range(3)] == [True] * 3


def test_forwards_are_pale_backwards_full_and_mixed_microbatches_striped(
    make_1f1b: MakeTimeline, two_adapters: Plan, tmp_path: Path
) -> None:
    # Microbatch 0 holds both adapters: one forward and one backward of it show all four colours.
    plot_gantt(make_1f1b(num_stages=1, num_microbatches=1), two_adapters, tmp_path / "gantt")
    seen = colours(tmp_path / "gantt.png")
    for adapter in (0, 1):
        assert rgb(adapter_colour(adapter)) in seen
        assert rgb(tint(adapter_colour(adapter), 0.55)) in seen


def test_a_crowded_run_is_shown_enlarged_below(make_1f1b: MakeTimeline, tmp_path: Path) -> None:
    plot_gantt(make_1f1b(num_stages=2, num_microbatches=80), None, tmp_path / "gantt")
    found = texts(tmp_path / "gantt.svg")
    assert (found.count("simulated, enlarged"), found.count("stage 0")) == (1, 2)
    # The enlarged stretch lies in the middle of 81 slots of 3 ms and names its microbatches.
    assert {"38", "39", "40", "41", "42"} <= set(found)


def test_the_enlarged_stretch_lies_within_the_shorter_run_too(make_1f1b: MakeTimeline, tmp_path: Path) -> None:
    measured = make_1f1b(num_stages=1, num_microbatches=80, source="measured")
    simulated = make_1f1b(num_stages=1, num_microbatches=80, forward_ms=3.0, backward_ms=6.0)
    plot_gantt([simulated, measured], None, tmp_path / "gantt")
    found = texts(tmp_path / "gantt.svg")
    # Around 120 ms: microbatch 13 of those of 9 ms, 40 of those of 3 ms.
    assert {"13", "40"} <= set(found)


def test_replicas_waits_steps_and_an_unknown_plan_are_drawn_too(tmp_path: Path) -> None:
    actions: list[tuple[SpanKind, str]] = [
        ("compute", "0F0"),
        ("wait", "0B0"),
        ("compute", "0B0"),
        ("compute", "0S0.0"),
    ]
    spans = [
        Span(replica=replica, stage=0, kind=kind, action=action, microbatch=-1, start_ms=at, end_ms=at + 1.0)
        for replica in (0, 1)
        for at, (kind, action) in enumerate(actions)
    ]
    timeline = Timeline.from_spans(spans, source="measured", origin="two replicas", num_stages=1, num_replicas=2)
    plot_gantt(timeline, None, tmp_path / "gantt")
    found = texts(tmp_path / "gantt.svg")
    assert {"replica 0, stage 0", "replica 1, stage 0"} <= set(found)
    assert "sums over replicas, evaluation" not in found


def test_what_neither_trains_nor_steps_is_grey_and_named(two_adapters: Plan, tmp_path: Path) -> None:
    spans = [
        Span(stage=0, action=action, microbatch=0, start_ms=at, end_ms=at + 1.0)
        for at, action in enumerate(("0F0", "0B0", "0R0.0", "0S0.0"))
    ]
    timeline = Timeline.from_spans(spans, source="measured", origin="by hand", num_stages=1)
    plot_gantt(timeline, two_adapters, tmp_path / "gantt")
    assert "sums over replicas, evaluation" in texts(tmp_path / "gantt.svg")
    assert rgb(MUTED) in colours(tmp_path / "gantt.png")


def test_many_adapters_are_named_up_to_twelve(two_adapters: Plan, tmp_path: Path) -> None:
    job = two_adapters.jobs[0]
    plan = Plan(jobs=(job,) * 15, num_stages=1, microbatch_tokens=100, microbatches=())
    plot_gantt(Timeline.from_spans([], source="simulated", origin="", num_stages=1), plan, tmp_path / "gantt")
    found = texts(tmp_path / "gantt.svg")
    assert (found.count("maths"), found.count("and 3 more adapters")) == (12, 1)
