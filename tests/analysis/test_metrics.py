"""The numbers of a run, checked by hand and against closed forms."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex.analysis.metrics import AdapterSummary, StageSummary, Summary, summarize
from loraplex.planner.plan import Plan
from loraplex.traces.timeline import Span, Timeline, no_counters

from .conftest import MakeTimeline, one_f_one_b


def test_two_stages_two_microbatches_by_hand(make_1f1b: MakeTimeline) -> None:
    # stage 0: F0 0-1, F1 1-2, B0 4-6, B1 7-9;  stage 1: F0 1-2, B0 2-4, F1 4-5, B1 5-7.
    assert summarize(make_1f1b(num_stages=2, num_microbatches=2)) == Summary(
        source="simulated",
        origin="by hand",
        num_stages=2,
        num_replicas=1,
        makespan_ms=9.0,
        bubble_ratio=1 - 12 / 18,
        steady_bubble_ratio=0.0,
        span_bubble_ratio=1 - 12 / (9 + 6),
        bubble_ms_by_cause={"warmup": 3.0, "cooldown": 3.0},
        peak_memory_bytes=None,
        stages=(
            StageSummary(
                replica=0,
                stage=0,
                busy_ms=6.0,
                bubble_ratio=1 - 6 / 9,
                steady_bubble_ratio=None,
                bubble_ms_by_cause={"warmup": 2.0, "cooldown": 1.0},
                peak_memory_bytes=None,
            ),
            StageSummary(
                replica=0,
                stage=1,
                busy_ms=6.0,
                bubble_ratio=1 - 6 / 9,
                steady_bubble_ratio=0.0,
                bubble_ms_by_cause={"warmup": 1.0, "cooldown": 2.0},
                peak_memory_bytes=None,
            ),
        ),
    )


@given(
    num_stages=st.integers(1, 6),
    num_microbatches=st.integers(1, 12),
    forward_ms=st.integers(1, 9),
    backward_ms=st.integers(1, 9),
)
def test_uniform_1f1b_has_the_published_bubble_and_none_of_it_in_the_steady_phase(
    num_stages: int, num_microbatches: int, forward_ms: int, backward_ms: int
) -> None:
    # (S-1)/(m+S-1): arXiv 2104.04473, section 2.2.
    summary = summarize(
        one_f_one_b(
            num_stages=num_stages, num_microbatches=num_microbatches, forward_ms=forward_ms, backward_ms=backward_ms
        )
    )
    assert summary.makespan_ms == (num_microbatches + num_stages - 1) * (forward_ms + backward_ms)
    assert summary.bubble_ratio == pytest.approx((num_stages - 1) / (num_microbatches + num_stages - 1), abs=1e-12)
    assert set(summary.bubble_ms_by_cause) <= {"warmup", "cooldown"}
    assert summary.steady_bubble_ratio in (None, pytest.approx(0.0, abs=1e-12))


SPANS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.integers(0, 1),
        st.sampled_from(["compute", "compute", "wait"]),
        st.sampled_from("FBIWRSE"),
        st.sampled_from(["", "imbalance", "transfer"]),
        st.floats(0, 5),
        st.floats(0, 5),
    ),
    max_size=40,
)


@given(SPANS)
def test_the_causes_always_add_up_to_the_bubble(rows: list[tuple[int, int, str, str, str, float, float]]) -> None:
    clock = {(replica, stage): 0.0 for replica in (0, 1) for stage in (0, 1)}
    spans = []
    for index, (replica, stage, kind, letter, cause, gap_ms, length_ms) in enumerate(rows):
        start_ms = clock[replica, stage] + gap_ms
        clock[replica, stage] = end_ms = start_ms + length_ms
        word = f"{stage}{letter}0.{index}" if letter in "RS" else f"{stage}{letter}{index}"
        spans.append(
            Span(
                replica=replica,
                stage=stage,
                kind="wait" if kind == "wait" else "compute",
                action=word,
                start_ms=start_ms,
                end_ms=end_ms,
                cause=cause if kind == "wait" else "",
            )
        )
    summary = summarize(Timeline.from_spans(spans, source="measured", origin="random", num_stages=2, num_replicas=2))
    bubble_ms = summary.bubble_ratio * 4 * summary.makespan_ms
    assert math.fsum(summary.bubble_ms_by_cause.values()) == pytest.approx(bubble_ms, abs=1e-6)
    assert 0.0 <= summary.bubble_ratio <= 1.0


def test_named_waits_keep_their_cause_and_reduce_is_no_work() -> None:
    spans = [
        Span(stage=0, action="0F0", microbatch=0, start_ms=0.0, end_ms=2.0),
        Span(stage=0, kind="wait", action="0B0", microbatch=0, start_ms=2.0, end_ms=5.0, cause="transfer"),
        Span(stage=0, action="0B0", microbatch=0, start_ms=5.0, end_ms=8.0),
        Span(stage=0, action="0F1", microbatch=1, start_ms=8.0, end_ms=9.0),
        Span(stage=0, kind="wait", action="0B1", microbatch=1, start_ms=9.0, end_ms=9.5, cause="dependency"),
        Span(stage=0, action="0B1", microbatch=1, start_ms=10.0, end_ms=12.0),
        Span(stage=0, action="0R0.0", start_ms=12.0, end_ms=13.0),
        Span(stage=0, action="0S0.0", start_ms=13.0, end_ms=14.0),
    ]
    summary = summarize(Timeline.from_spans(spans, source="simulated", origin="by hand", num_stages=1))
    assert summary.bubble_ms_by_cause == {
        "cooldown": 0.5,
        "dependency": 0.5,
        "transfer": 3.0,
        "reduce": 1.0,
    }
    assert summary.bubble_ratio == 1 - 9 / 14


def test_a_plan_adds_tokens_waste_and_completions(two_adapters: Plan) -> None:
    actions = [("0F0", 0, 0, 2), ("0B0", 0, 2, 4), ("0S0.0", -1, 4, 5), ("0F1", 1, 5, 7), ("0B1", 1, 7, 9)]
    actions += [("0S1.0", -1, 9, 10), ("0F2", 2, 10, 11), ("0B2", 2, 11, 12), ("0S0.1", -1, 12, 13)]
    timeline = Timeline.from_spans(
        [
            Span(stage=0, action=action, microbatch=index, start_ms=1000.0 + start, end_ms=1000.0 + end)
            for action, index, start, end in actions
        ],
        source="measured",
        origin="by hand",
        num_stages=1,
    )
    summary = summarize(timeline, plan=two_adapters, alone_ms={"maths": 6.5})
    # Microbatches: 40 + 30 tokens (40 + 32 padded), 90 (96), 10 (16); 28, 4 and 84 of 100 stay unused.
    assert summary.adapters == (
        AdapterSummary(
            name="maths",
            num_tokens=50,
            num_microbatches=2,
            padding_tokens=6,
            capacity_waste_tokens=28 * 40 / 72 + 84,
            stall_slots=0.0,
            completion_ms=13.0,
            alone_ms=6.5,
        ),
        AdapterSummary(
            name="papers",
            num_tokens=120,
            num_microbatches=2,
            padding_tokens=8,
            capacity_waste_tokens=28 * 32 / 72 + 4,
            stall_slots=0.0,
            completion_ms=10.0,
        ),
    )
    assert [adapter.slowdown() for adapter in summary.adapters] == [2.0, None]
    assert summary.tokens_per_s == 170 / 13 * 1000
    assert summary.padding_ratio == 14 / 184
    assert summary.capacity_waste_ratio == pytest.approx(116 / 300)
    assert summary.num_microbatches == 3
    # An adapter that its first step halted has not trained on what came after it.
    halted = summarize(timeline, plan=two_adapters, last_steps={"maths": 0, "papers": 0})
    assert (halted.num_tokens, halted.tokens_per_s) == (160, 160 / 13 * 1000)


def test_without_steps_an_adapter_is_done_with_its_last_backward(two_adapters: Plan) -> None:
    spans = [
        Span(
            stage=0,
            action=f"0{letter}{index}",
            microbatch=index,
            start_ms=2.0 * index + at,
            end_ms=2.0 * index + at + 1,
        )
        for index in (0, 1)
        for at, letter in enumerate("FB")
    ]
    timeline = Timeline.from_spans(spans, source="simulated", origin="by hand", num_stages=1)
    assert [adapter.completion_ms for adapter in summarize(timeline, plan=two_adapters).adapters] == [2.0, 4.0]


def test_peak_memory_is_the_highest_counter_of_each_stage(make_1f1b: MakeTimeline) -> None:
    timeline = make_1f1b(num_stages=2, num_microbatches=2)
    counters = no_counters()
    for row, held in enumerate([(0, 1, 0.0, 10), (0, 1, 3.0, 70), (0, 1, 5.0, 20)]):
        counters.loc[row] = held
    tracked = Timeline.from_frame(timeline.frame, source="simulated", origin="by hand", num_stages=2, counters=counters)
    summary = summarize(tracked)
    assert ([stage.peak_memory_bytes for stage in summary.stages], summary.peak_memory_bytes) == ([None, 70], 70)


def test_an_empty_timeline_has_no_bubble() -> None:
    summary = summarize(Timeline.from_spans([], source="simulated", origin="nothing", num_stages=2))
    assert (summary.makespan_ms, summary.bubble_ratio, summary.steady_bubble_ratio) == (0.0, 0.0, None)


def test_the_summary_as_json_is_plain_and_complete(make_1f1b: MakeTimeline, two_adapters: Plan) -> None:
    content = json.loads(
        json.dumps(summarize(make_1f1b(num_stages=2, num_microbatches=3), plan=two_adapters).to_json())
    )
    assert {"makespan_ms", "bubble_ratio", "bubble_ms_by_cause", "tokens_per_s", "peak_memory_bytes", "stages"} <= set(
        content
    )
    assert set(content["stages"][0]) == set(StageSummary.__dataclass_fields__)
    assert set(content["adapters"][0]) == {*AdapterSummary.__dataclass_fields__, "slowdown"}
