"""Timelines: order, pandas, the file, and what a bad file is told."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex.traces.errors import TraceError
from loraplex.traces.timeline import SPAN_KINDS, Span, Timeline, no_counters

SPANS = st.lists(
    st.builds(
        lambda length, **values: Span(**values, end_ms=values["start_ms"] + length),
        replica=st.integers(0, 1),
        stage=st.integers(0, 2),
        kind=st.sampled_from(SPAN_KINDS),
        action=st.from_regex(r"[0-9]F[0-9]{1,3}", fullmatch=True),
        microbatch=st.integers(-1, 10**6),
        start_ms=st.floats(0, 1e6),
        length=st.floats(0, 1e6),
        bytes=st.integers(0, 2**62),
        cause=st.sampled_from(["", "warmup", "dependency", "Ursache: unbekannt"]),
    ),
    max_size=30,
)


def timeline_of(spans: list[Span]) -> Timeline:
    return Timeline.from_spans(spans, source="simulated", origin="made up", num_stages=3, num_replicas=2)


@given(spans=SPANS)
def test_a_saved_timeline_comes_back_bit_for_bit(spans: list[Span], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("timeline") / "timeline.json"
    counters = pd.DataFrame({"replica": [0, 1], "stage": [2, 0], "ms": [0.1, 0.2], "bytes": [1, 2**60]})
    saved = Timeline.from_frame(
        timeline_of(spans).frame, source="measured", origin="ä", num_stages=3, num_replicas=2, counters=counters
    )
    saved.save(path)
    loaded = Timeline.load(path)
    assert (loaded.source, loaded.origin, loaded.num_stages, loaded.num_replicas) == ("measured", "ä", 3, 2)
    pd.testing.assert_frame_equal(loaded.frame, saved.frame, check_exact=True)
    pd.testing.assert_frame_equal(loaded.counters, saved.counters, check_exact=True)


@given(spans=SPANS)
def test_spans_come_out_by_replica_stage_and_start(spans: list[Span]) -> None:
    found = list(timeline_of(spans).spans())
    order = [(span.replica, span.stage, span.start_ms, span.end_ms) for span in found]
    assert order == sorted(order)
    assert sorted(map(repr, found)) == sorted(map(repr, spans))


def test_to_pandas_and_back() -> None:
    timeline = timeline_of(
        [Span(stage=1, action="1F0", start_ms=1.0, end_ms=3.0), Span(stage=0, action="0F0", start_ms=0, end_ms=1)]
    )
    again = Timeline.from_frame(timeline.frame, source="simulated", origin="made up", num_stages=3)
    pd.testing.assert_frame_equal(again.frame, timeline.frame)
    assert again.makespan_ms() == 3.0


def test_a_timeline_without_spans_can_be_saved_too(tmp_path: Path) -> None:
    timeline_of([]).save(tmp_path / "empty.json")
    loaded = Timeline.load(tmp_path / "empty.json")
    assert (len(loaded.frame), len(loaded.counters), loaded.makespan_ms()) == (0, 0, 0.0)


def test_columns_at_their_default_take_no_room(tmp_path: Path) -> None:
    timeline_of([Span(stage=0, action="0F0", microbatch=0, start_ms=0.0, end_ms=1.0)]).save(tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text()) == {
        "format": "loraplex-timeline",
        "version": 1,
        "source": "simulated",
        "origin": "made up",
        "num_stages": 3,
        "num_replicas": 2,
        "spans": {"stage": [0], "action": ["0F0"], "microbatch": [0], "start_ms": [0.0], "end_ms": [1.0]},
    }


def test_saving_replaces_the_file_whole_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "t.json"
    timeline_of([]).save(path)
    timeline_of([Span(stage=0, action="0F0", start_ms=0.0, end_ms=1.0)]).save(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["t.json"]
    assert len(Timeline.load(path).frame) == 1


GOOD = {
    "format": "loraplex-timeline",
    "version": 1,
    "source": "simulated",
    "origin": "made up",
    "num_stages": 2,
    "num_replicas": 1,
    "spans": {
        "stage": [0, 1],
        "action": ["0F0", "1F0"],
        "kind": {"words": ["compute"], "codes": [0, 0]},
        "start_ms": [0.0, 1],
        "end_ms": [1.0, 2.5],
    },
    "counters": {"replica": [0], "stage": [0], "ms": [0.0], "bytes": [7]},
}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("format", "other", "'format' must be 'loraplex-timeline'"),
        ("version", 2, "version 2 cannot be read, only 1"),
        ("source", "guessed", "source='guessed' must be 'simulated' or 'measured'"),
        ("origin", 3, "origin=3 must be a text"),
        ("num_stages", 0, "num_stages=0 must be a whole number of at least 1"),
        ("num_stages", True, "num_stages=True must be a whole number"),
        ("num_stages", 1, "spans row 1: stage=1 must lie between 0 and 0"),
        ("spans", [], "'spans' must be an object of columns"),
        ("spans", {"stage": [0]}, "'spans' lacks the columns ['action', 'start_ms', 'end_ms']"),
        ("spans.stage", [0], "must have one length"),
        ("spans.stage", [0, "1"], "'spans' column 'stage' row 1: '1' must be a whole number"),
        ("spans.stage", [0, 2**70], "more than 64 bits"),
        ("spans.stage", 5, "'spans' column 'stage' must be a list"),
        ("spans.end_ms", [1.0, None], "'spans' column 'end_ms' row 1: None must be a number"),
        ("spans.end_ms", [1.0, float("nan")], "spans row 1: end_ms=nan must be a finite number"),
        ("spans.end_ms", [1.0, 0.5], "spans row 1: end_ms=0.5 must not lie before its start_ms"),
        ("spans.action", ["0F0", 3], "'spans' column 'action' must be a list of texts"),
        ("spans.kind", {"words": ["compute"], "codes": [0, 1]}, "codes outside its 1 words"),
        ("spans.kind", {"words": ["dance"], "codes": [0, 0]}, "spans row 0: kind=dance must be one of"),
        ("spans.kind", ["compute"], "must hold 'words'"),
        ("spans.mood", [1, 2], "unknown columns ['mood']"),
        ("spans.bytes", [1, -2], "spans row 1: bytes=-2 must not be negative"),
        ("counters.stage", [5], "counters row 0: stage=5 must lie between 0 and 1"),
        ("counters", {"replica": [0]}, "'counters' lacks the columns"),
    ],
)
def test_a_bad_file_is_told_where_and_why(place: str, value: object, message: str, tmp_path: Path) -> None:
    content = json.loads(json.dumps(GOOD))
    holder, _, name = place.rpartition(".")
    (content[holder] if holder else content)[name] = value
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(content))
    with pytest.raises(TraceError) as caught:
        Timeline.load(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_the_good_file_of_these_tests_is_good(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text(json.dumps(GOOD))
    assert list(Timeline.load(tmp_path / "good.json").spans()) == [
        Span(stage=0, action="0F0", start_ms=0.0, end_ms=1.0),
        Span(stage=1, action="1F0", start_ms=1.0, end_ms=2.5),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"is no JSON .*; write it with loraplex train or loraplex simulate"),
        ("[]", "is no timeline .*; write it with loraplex train or loraplex simulate"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_timeline_at_all_is_named(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "t.json").write_text(text)
    with pytest.raises(TraceError, match=message):
        Timeline.load(tmp_path / "t.json")


def test_a_frame_without_a_column_is_refused() -> None:
    frame = timeline_of([]).frame
    with pytest.raises(TraceError, match=r"\['end_ms'\] are missing"):
        Timeline.from_frame(frame.drop(columns="end_ms"), source="simulated", origin="", num_stages=1)
    with pytest.raises(TraceError, match=r"\['bytes'\] are missing"):
        Timeline.from_frame(
            frame, source="simulated", origin="", num_stages=1, counters=no_counters().drop(columns="bytes")
        )


def test_check_returns_a_good_timeline_and_names_a_wrong_source() -> None:
    timeline = timeline_of([])
    assert timeline.check() is timeline
    wrong = Timeline(source="guessed", origin="", num_stages=1, frame=timeline.frame)  # type: ignore[arg-type]
    with pytest.raises(TraceError, match="source='guessed'"):
        wrong.check()


def test_numbers_from_numpy_are_saved_like_any_other(tmp_path: Path) -> None:
    frame = timeline_of([Span(stage=0, action="0F0", start_ms=0.0, end_ms=1.0)]).frame
    frame = frame.astype({"stage": np.int32, "microbatch": np.int16, "start_ms": np.float32})
    Timeline.from_frame(frame, source="simulated", origin="", num_stages=1).save(tmp_path / "t.json")
    assert [span.stage for span in Timeline.load(tmp_path / "t.json").spans()] == [0]
