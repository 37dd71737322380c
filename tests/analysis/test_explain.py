"""Measured waits get their causes by the simulator's rule."""

from dataclasses import replace

import pandas as pd

from loraplex.analysis.explain import explain_waits
from loraplex.analysis.metrics import summarize
from loraplex.traces.timeline import Span, Timeline

from .conftest import MakeTimeline


def waits(timeline: Timeline) -> list[tuple[int, str, float, float, str]]:
    frame = timeline.frame[timeline.frame["kind"] == "wait"]
    return [tuple(row) for row in frame[["stage", "action", "start_ms", "end_ms", "cause"]].values.tolist()]


def test_the_gaps_of_two_stages_by_hand(make_1f1b: MakeTimeline) -> None:
    # stage 0: F0 0-1, F1 1-2, B0 4-6, B1 7-9;  stage 1: F0 1-2, B0 2-4, F1 4-5, B1 5-7.
    assert waits(explain_waits(make_1f1b(num_stages=2, num_microbatches=2))) == [
        (0, "0B0", 2.0, 4.0, "warmup"),
        (0, "0B1", 6.0, 7.0, "cooldown"),
        (1, "1F0", 0.0, 1.0, "warmup"),
        (1, "1B1", 7.0, 9.0, "cooldown"),
    ]


def with_latency(*, transfers: bool) -> Timeline:
    """1F1B on two stages with F = 1, B = 2 and messages that take 0.5: stage 1 has to wait before F2, from 7.5 on."""
    down = [("0F0", 0.0, 1.0), ("0F1", 1.0, 2.0), ("0B0", 5.0, 7.0), ("0F2", 7.0, 8.0), ("0B1", 8.0, 10.0)]
    down += [("0B2", 12.0, 14.0)]
    up = [("1F0", 1.5, 2.5), ("1B0", 2.5, 4.5), ("1F1", 4.5, 5.5), ("1B1", 5.5, 7.5), ("1F2", 8.5, 9.5)]
    up += [("1B2", 9.5, 11.5)]
    spans = [
        Span(stage=int(word[0]), action=word, microbatch=int(word[-1]), start_ms=100.0 + start, end_ms=100.0 + end)
        for word, start, end in down + up
    ]
    sent = [span for span in spans if span.action[:2] in ("0F", "1B")] if transfers else []
    spans += [replace(span, kind="transfer", start_ms=span.end_ms, end_ms=span.end_ms + 0.5, bytes=8) for span in sent]
    # What an engine notes without knowing why; the explanation replaces it.
    spans.append(Span(stage=1, kind="wait", action="1F2", microbatch=2, start_ms=107.5, end_ms=108.5))
    return Timeline.from_spans(spans, source="measured", origin="by hand", num_stages=2)


def test_a_recorded_transfer_takes_its_part_of_a_wait() -> None:
    # F2 came late because stage 0 began it late, after a gradient that stage 1 itself had sent: two messages of 0.5.
    steady = [row for row in waits(explain_waits(with_latency(transfers=True))) if row[1] == "1F2"]
    assert steady == [(1, "1F2", 107.5, 108.5, "transfer")]


def test_without_transfers_recorded_the_costs_are_to_blame() -> None:
    steady = [row for row in waits(explain_waits(with_latency(transfers=False))) if row[1] == "1F2"]
    assert steady == [(1, "1F2", 107.5, 108.5, "imbalance")]


def test_the_numbers_of_a_measured_run_come_with_causes() -> None:
    summary = summarize(with_latency(transfers=True))
    assert summary.bubble_ms_by_cause == {"warmup": 4.5, "cooldown": 4.5, "transfer": 1.0}


def test_explaining_twice_changes_nothing(make_1f1b: MakeTimeline) -> None:
    once = explain_waits(make_1f1b(num_stages=3, num_microbatches=5))
    assert explain_waits(once) is once


def test_an_interrupted_run_stays_as_it_is(make_1f1b: MakeTimeline) -> None:
    whole = make_1f1b(num_stages=2, num_microbatches=3)
    for frame in (whole.frame[whole.frame["action"] != "0F1"], pd.concat([whole.frame, whole.frame])):
        part = Timeline.from_frame(frame, source="measured", origin="", num_stages=2)
        assert explain_waits(part) is part
