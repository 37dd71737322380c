"""Prediction against reality, on runs whose differences are known."""

import json
from dataclasses import replace
from io import StringIO

import pandas as pd
import pytest
from rich.console import Console

from loraplex.analysis.compare import ActionComparison, action_times, compare
from loraplex.analysis.metrics import summarize
from loraplex.analysis.tables import comparison_table, summary_table
from loraplex.planner.plan import Plan
from loraplex.traces.errors import TraceError
from loraplex.traces.timeline import Span, Timeline

from .conftest import MakeTimeline


def printed(renderable: object) -> str:
    output = StringIO()
    Console(width=100, file=output).print(renderable)
    return output.getvalue()


def test_a_run_a_tenth_slower_than_foretold(make_1f1b: MakeTimeline) -> None:
    simulated = make_1f1b(num_stages=2, num_microbatches=3)
    measured = make_1f1b(num_stages=2, num_microbatches=3, forward_ms=1.25, backward_ms=2.5, source="measured")
    comparison = compare(simulated, measured=measured)
    assert comparison.makespan_error() == pytest.approx(-0.2)
    assert comparison.bubble_ratio_difference() == pytest.approx(0.0)
    assert comparison.same_order()
    assert comparison.actions == tuple(
        ActionComparison(
            stage=stage,
            action=action,
            num_simulated=3,
            num_measured=3,
            simulated_ms=simulated_ms,
            measured_ms=simulated_ms * 1.25,
        )
        for stage in (0, 1)
        for action, simulated_ms in (("forward", 1.0), ("backward", 2.0))
    )
    assert [action.error() for action in comparison.actions] == [pytest.approx(-0.2)] * 4


def test_of_a_resumed_run_the_last_part_alone_is_counted_and_it_is_said(
    make_1f1b: MakeTimeline, two_adapters: Plan
) -> None:
    simulated = make_1f1b(num_stages=2, num_microbatches=3)
    rest = simulated.frame[simulated.frame["microbatch"] == 2]
    comparison = compare(simulated, measured=changed(simulated, rest), plan=two_adapters)
    assert comparison.num_unmeasured == 2
    (note,) = comparison.notes()
    assert "not executed here: 2 simulated microbatches; of a run that was resumed" in note
    assert note[:40] in printed(comparison_table(comparison)).replace("\n", " ")
    assert (comparison.simulated.num_tokens, comparison.measured.num_tokens) == (170, 10)
    assert compare(simulated, measured=simulated).notes() == ()
    assert replace(comparison, num_unmeasured=1).notes()[0].startswith("not executed here: 1 simulated microbatch;")


def changed(timeline: Timeline, frame: pd.DataFrame) -> Timeline:
    return Timeline.from_frame(frame, source="measured", origin="changed", num_stages=timeline.num_stages)


def test_another_order_is_found_where_it_begins(make_1f1b: MakeTimeline) -> None:
    simulated = make_1f1b(num_stages=2, num_microbatches=3)
    swapped = simulated.frame.copy()
    rows = swapped["action"].isin(["1B1", "1F2"])
    swapped.loc[rows, "action"] = swapped.loc[rows, "action"].to_numpy()[::-1]
    comparison = compare(simulated, measured=changed(simulated, swapped))
    assert comparison.first_difference == "stage 1, action 3: 1B1 was simulated, 1F2 was executed"
    short = compare(simulated, measured=changed(simulated, simulated.frame.iloc[:-1]))
    assert short.first_difference == "stage 1, action 5: 1B2 was simulated, nothing was executed"
    assert not short.same_order()


def with_evaluations(timeline: Timeline, *, number: int) -> Timeline:
    """Two microbatches are evaluated before the first backward: 0.25 ms and 0.5 ms, twice as long on stage 1."""
    rows = [
        Span(stage=stage, action=f"{stage}E{number + turn}", microbatch=number + turn, start_ms=start_ms, end_ms=end_ms)
        for stage in range(timeline.num_stages)
        for turn, (start_ms, end_ms) in enumerate([(1.0, 1.0 + 0.25 * (1 + stage)), (1.5, 1.5 + 0.5 * (1 + stage))])
    ]
    more = Timeline.from_spans(rows, source="measured", origin="rows", num_stages=timeline.num_stages).frame
    both = pd.concat([timeline.frame, more])
    return changed(timeline, both.sort_values("start_ms", kind="stable", ignore_index=True))


def test_evaluations_are_no_other_order_and_are_told(make_1f1b: MakeTimeline) -> None:
    simulated = make_1f1b(num_stages=2, num_microbatches=3)
    measured = with_evaluations(simulated, number=3)
    comparison = compare(simulated, measured=measured)
    assert comparison.same_order()
    assert (comparison.num_evaluations, comparison.evaluations_ms) == (2, 1.5)
    assert comparison.to_json()["num_evaluations"] == 2
    (note,) = comparison.notes()
    assert note == (
        "evaluations executed: 2 microbatches, 1.50 ms on the stage that had most of them; the simulation has "
        "none, and its makespan lacks their time"
    )
    told = " ".join(printed(comparison_table(comparison)).split())
    assert "order of actions: the same on every stage, span for span, evaluations apart" in told
    assert note in told
    # Another order beside them is still found, at its place among what is simulated.
    swapped = measured.frame.copy()
    rows = swapped["action"].isin(["1B1", "1F2"])
    swapped.loc[rows, "action"] = swapped.loc[rows, "action"].to_numpy()[::-1]
    other = compare(simulated, measured=changed(simulated, swapped))
    assert other.first_difference == "stage 1, action 3: 1B1 was simulated, 1F2 was executed"


def test_every_action_beside_its_prediction(make_1f1b: MakeTimeline) -> None:
    simulated = make_1f1b(num_stages=1, num_microbatches=2)
    measured = make_1f1b(num_stages=1, num_microbatches=3, backward_ms=3.0, source="measured")
    both = action_times(simulated, measured)
    assert both[["action", "letter", "simulated_ms", "measured_ms"]].values.tolist() == [
        ["0F0", "F", 1.0, 1.0],
        ["0B0", "B", 2.0, 3.0],
        ["0F1", "F", 1.0, 1.0],
        ["0B1", "B", 2.0, 3.0],
    ]


def test_timelines_of_different_plans_are_refused(make_1f1b: MakeTimeline, two_adapters: Plan) -> None:
    two, three = (make_1f1b(num_stages=stages, num_microbatches=2) for stages in (2, 3))
    with pytest.raises(TraceError, match="num_stages=2, the measured one 3"):
        compare(two, measured=three)
    with pytest.raises(TraceError, match="the plan has num_stages=2, its timelines 3"):
        compare(three, measured=three, plan=two_adapters)


def test_the_tables_say_what_the_numbers_say(make_1f1b: MakeTimeline, two_adapters: Plan) -> None:
    simulated = make_1f1b(num_stages=2, num_microbatches=3)
    measured = make_1f1b(num_stages=2, num_microbatches=3, backward_ms=3.0, source="measured")
    text = printed(comparison_table(compare(simulated, measured=measured, plan=two_adapters)))
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if "│" in line]
    assert rows[0] == ["makespan", "12.0 ms", "16.0 ms", "-25.0 %"]
    assert ["1", "backward", "3", "2.00 ms", "3.00 ms", "-33.3 %"] in rows
    assert "the same on every stage, span for span" in text
    assert "The costs were those of by hand. If they were not measured on this machine" in text
    close = make_1f1b(num_stages=2, num_microbatches=3, backward_ms=2.2, source="measured")
    assert "The costs" not in printed(comparison_table(compare(simulated, measured=close, plan=two_adapters)))
    text = printed(summary_table(summarize(simulated, plan=two_adapters, alone_ms={"papers": 5.0})))
    for words in ("bubble ratio", "by warmup", "by cooldown", "maths", "papers", "unused capacity"):
        assert words in text


def test_peaks_are_compared_where_both_were_tracked(make_1f1b: MakeTimeline) -> None:
    def held(num_bytes: int) -> pd.DataFrame:
        return pd.DataFrame({"replica": [0, 0], "stage": [0, 1], "ms": [0.0, 0.0], "bytes": [num_bytes, 100]})

    plain = make_1f1b(num_stages=2, num_microbatches=2)
    simulated, measured = (replace(plain, counters=held(num_bytes)) for num_bytes in (1050, 1000))
    comparison = compare(simulated, measured=measured)
    assert comparison.peak_memory_error() == pytest.approx(0.05)
    assert "+5.0 %" in printed(comparison_table(comparison))
    assert compare(simulated, measured=plain).peak_memory_error() is None
    assert compare(plain, measured=measured).peak_memory_error() is None


def test_a_comparison_is_plain_json(make_1f1b: MakeTimeline) -> None:
    simulated = make_1f1b(num_stages=2, num_microbatches=2)
    content = json.loads(json.dumps(compare(simulated, measured=simulated).to_json()))
    assert {name: content[name] for name in ("makespan_error", "bubble_ratio_difference", "same_order")} == {
        "makespan_error": 0.0,
        "bubble_ratio_difference": 0.0,
        "same_order": True,
    }
