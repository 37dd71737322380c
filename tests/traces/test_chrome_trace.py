"""The Chrome trace: every event of a small run, and the rules that Perfetto needs."""

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from loraplex.traces.chrome_trace import trace_events, write_chrome_trace
from loraplex.traces.timeline import Span, Timeline

RUN = Timeline.from_spans(
    [
        Span(stage=0, action="0F0", microbatch=0, start_ms=10.0, end_ms=11.0),
        Span(stage=0, kind="transfer", action="0F0", microbatch=0, start_ms=11.0, end_ms=11.5, bytes=64),
        Span(stage=1, kind="wait", action="1F0", microbatch=0, start_ms=10.0, end_ms=11.5, cause="warmup"),
        Span(stage=1, action="1F0", microbatch=0, start_ms=11.5, end_ms=12.0),
    ],
    source="simulated",
    origin="by hand",
    num_stages=2,
    counters=pd.DataFrame({"replica": [0], "stage": [1], "ms": [11.5], "bytes": [1024]}),
)


def test_every_event_of_one_forward_through_two_stages() -> None:
    events = list(trace_events(RUN, contents={0: "maths 40 tokens"}))
    arguments = {"microbatch": 0, "holds": "maths 40 tokens"}
    assert [event for event in events if event["ph"] != "M"] == [
        {
            "ph": "X",
            "name": "0F0",
            "cat": "compute",
            "pid": 1000,
            "tid": 1,
            "ts": 0.0,
            "dur": 1000.0,
            "args": arguments,
        },
        {
            "ph": "X",
            "name": "wait: warmup",
            "cat": "wait",
            "pid": 1000,
            "tid": 2,
            "ts": 0.0,
            "dur": 1500.0,
            "args": {"microbatch": 0, "waits for": "1F0"},
        },
        {
            "ph": "X",
            "name": "1F0",
            "cat": "compute",
            "pid": 1000,
            "tid": 2,
            "ts": 1500.0,
            "dur": 500.0,
            "args": arguments,
        },
        {
            "ph": "X",
            "name": "result of 0F0",
            "cat": "transfer",
            "pid": 1000,
            "tid": 3,
            "ts": 1000.0,
            "dur": 500.0,
            "args": {"microbatch": 0, "bytes": 64},
        },
        {"ph": "s", "cat": "transfer", "name": "transfer", "id": 1000 * 2**32, "pid": 1000, "tid": 1, "ts": 999.999},
        {
            "ph": "f",
            "bp": "e",
            "cat": "transfer",
            "name": "transfer",
            "id": 1000 * 2**32,
            "pid": 1000,
            "tid": 2,
            "ts": 1500.0,
        },
        {"ph": "C", "name": "memory of stage 1", "pid": 1000, "ts": 1500.0, "args": {"bytes": 1024}},
    ]
    names = [event["args"] for event in events if event["name"] in ("process_name", "thread_name")]
    assert names == [
        {"name": "simulated: by hand"},
        {"name": "stage 0"},
        {"name": "stage 1"},
        {"name": "transfers from stage 0"},
    ]


def test_several_timelines_are_processes_of_one_file_that_all_begin_at_zero(tmp_path: Path) -> None:
    later = Timeline.from_frame(
        RUN.frame.assign(start_ms=RUN.frame["start_ms"] + 500, end_ms=RUN.frame["end_ms"] + 500),
        source="measured",
        origin="a laptop",
        num_stages=2,
        num_replicas=2,
    )
    write_chrome_trace([RUN, later], tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    titles = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert titles == {
        1000: "simulated: by hand",
        1001: "measured: a laptop, replica 0",
        1002: "measured: a laptop, replica 1",
    }
    firsts = [min(event["ts"] for event in events if event["pid"] == pid and "ts" in event) for pid in (1000, 1001)]
    assert firsts == [0.0, 0.0]


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["compute", "transfer"]), st.floats(0, 50), st.floats(0, 9)),
        max_size=40,
    )
)
def test_slices_of_one_track_never_overlap(rows: list[tuple[int, str, float, float]]) -> None:
    clock = defaultdict[int, float](float)
    spans = []
    for index, (stage, kind, start_ms, length_ms) in enumerate(rows):
        # A stage computes one thing at a time; transfers may be under way together.
        begin = start_ms if kind == "transfer" else clock[stage]
        if kind == "compute":
            clock[stage] += length_ms
        spans.append(
            Span(
                stage=stage,
                kind="transfer" if kind == "transfer" else "compute",
                action=f"{stage}F{index}",
                microbatch=index,
                start_ms=begin,
                end_ms=begin + length_ms,
            )
        )
    timeline = Timeline.from_spans(spans, source="simulated", origin="random", num_stages=3)
    tracks = defaultdict(list)
    for event in trace_events(timeline):
        if event["ph"] == "X":
            tracks[event["tid"]].append((event["ts"], event["dur"]))
    for slices in tracks.values():
        slices.sort()
        for (start, length), (following, _) in pairwise(slices):
            assert round(start + length, 3) <= following
    assert sum(map(len, tracks.values())) == len(spans)


def test_backwards_point_to_the_stage_before_and_chunks_round_the_corner() -> None:
    # Two stages with two chunks each: places 0, 1 (stages 0, 1), then 2, 3 (stages 0, 1 again).
    words = ["0F0", "1F0", "2F0", "3F0", "3B0", "2B0", "1B0", "0B0"]
    spans = [
        Span(stage=int(word[0]) % 2, action=word, microbatch=0, start_ms=float(at), end_ms=at + 1.0)
        for at, word in enumerate(words)
    ]
    timeline = Timeline.from_spans(spans, source="simulated", origin="by hand", num_stages=2)
    ends: dict[str, dict[int, int]] = {"s": {}, "f": {}}
    for event in trace_events(timeline):
        if event["ph"] in ends:
            ends[event["ph"]][event["id"]] = event["tid"]
    listed = timeline.compute()["action"].tolist()
    tracks = {listed[number % 2**32]: (ends["s"][number], ends["f"][number]) for number in ends["s"]}
    assert tracks == {"0F0": (1, 2), "1F0": (2, 1), "2F0": (1, 2), "3B0": (2, 1), "2B0": (1, 2), "1B0": (2, 1)}


def test_a_timeline_without_spans_is_a_valid_trace(tmp_path: Path) -> None:
    empty = Timeline.from_spans([], source="simulated", origin="nothing", num_stages=1)
    write_chrome_trace(empty, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M"}
