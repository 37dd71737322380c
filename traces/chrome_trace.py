"""Timelines as a Chrome trace (JSON), which https://ui.perfetto.dev opens: one process a timeline, one track a stage.

Slices carry the Program's words with microbatch and wait cause; arrows lead from the action that sent something to the
action that used it; transfers lie on tracks of their own below the stages, memory is a counter. Format: "Trace Event
Format" of the Chromium project (events X, s, f, C, M), times in microseconds. What takes no time at all (a Step that
costs nothing) hangs as a mark below its track. tests/analysis/check_trace_in_perfetto.py opens traces there.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from heapq import heapreplace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pandas as pd

from .files import write_atomically
from .timeline import Timeline

_WORD = re.compile(r"(\d+)([FBIE])(\d+)")
Event = dict[str, Any]
FIRST_PROCESS = 1000
_FIRST_TRACK = 1
"""Perfetto takes process 0 and thread 0 for idle ones, and a thread with its process's number for the main one."""
_MOST_ACTIONS = 2**32


def write_chrome_trace(
    timelines: Timeline | Sequence[Timeline], path: Path | str, *, contents: Mapping[int, str] | None = None
) -> None:
    """Write one or several timelines into one file, each beginning at time 0, so that they can be laid side by side.

    `contents` says in words what a microbatch holds; its slices show that on a click.
    """
    listed = [timelines] if isinstance(timelines, Timeline) else list(timelines)
    events = chain.from_iterable(
        trace_events(
            timeline,
            first_process=FIRST_PROCESS + sum(earlier.num_replicas for earlier in listed[:number]),
            contents=contents,
        )
        for number, timeline in enumerate(listed)
    )
    # Encoding many events at once is several times faster than one by one.
    encode = json.JSONEncoder(separators=(",", ":")).encode
    lines = ",\n".join(encode(part)[1:-1] for part in iter(lambda: list(islice(events, 10_000)), []))
    write_atomically(path, '{"displayTimeUnit":"ms","traceEvents":[\n' + lines + "\n]}\n")


def trace_events(
    timeline: Timeline, *, first_process: int = FIRST_PROCESS, contents: Mapping[int, str] | None = None
) -> Iterator[Event]:
    """The events of one timeline; its replicas become the processes from `first_process` on."""
    zero_ms = _first_ms(timeline)
    for replica in range(timeline.num_replicas):
        process = first_process + replica
        own = timeline.frame[timeline.frame["replica"] == replica]
        transfers = own[own["kind"] == "transfer"]
        lanes = _lanes(transfers, num_stages=timeline.num_stages)
        yield from _names(timeline, process=process, replica=replica, lanes=lanes)
        yield from _slices(own[own["kind"] != "transfer"], process, zero_ms, contents or {})
        yield from _transfer_slices(transfers, process, zero_ms, lanes)
        yield from _arrows(own[own["kind"] == "compute"], process, zero_ms, timeline.num_stages)
        counters = timeline.counters[timeline.counters["replica"] == replica]
        for stage, ms, held in zip(counters["stage"], counters["ms"], counters["bytes"], strict=True):
            name = f"memory of stage {stage}"
            yield {"ph": "C", "name": name, "pid": process, "ts": _us(ms, zero_ms), "args": {"bytes": int(held)}}


def _first_ms(timeline: Timeline) -> float:
    return min(
        (float(column.min()) for column in (timeline.frame["start_ms"], timeline.counters["ms"]) if len(column)),
        default=0.0,
    )


def _us(ms: float, zero_ms: float) -> float:
    # Nanoseconds are the finest that Perfetto keeps.
    return round((ms - zero_ms) * 1e3, 3)


def _length_us(start_ms: float, end_ms: float, zero_ms: float) -> float:
    # The difference of the rounded ends, so that neighbours never overlap by a rounding.
    return round(_us(end_ms, zero_ms) - _us(start_ms, zero_ms), 3)


def _names(timeline: Timeline, *, process: int, replica: int, lanes: "pd.Series[int]") -> Iterator[Event]:
    title = f"{timeline.source}: {timeline.origin}"
    if timeline.num_replicas > 1:
        title += f", replica {replica}"
    yield {"ph": "M", "name": "process_name", "pid": process, "args": {"name": title}}
    yield {"ph": "M", "name": "process_sort_index", "pid": process, "args": {"sort_index": process}}
    tracks = {stage: f"stage {stage}" for stage in range(timeline.num_stages)}
    tracks |= {int(lane): f"transfers from stage {lane % timeline.num_stages}" for lane in sorted(lanes.unique())}
    for track, name in tracks.items():
        yield {"ph": "M", "name": "thread_name", "pid": process, "tid": _FIRST_TRACK + track, "args": {"name": name}}
        yield {
            "ph": "M",
            "name": "thread_sort_index",
            "pid": process,
            "tid": _FIRST_TRACK + track,
            "args": {"sort_index": track},
        }


def _slices(frame: pd.DataFrame, process: int, zero_ms: float, contents: Mapping[int, str]) -> Iterator[Event]:
    columns = ("stage", "kind", "action", "microbatch", "start_ms", "end_ms", "cause")
    for stage, kind, action, microbatch, start_ms, end_ms, cause in zip(
        *(frame[name] for name in columns), strict=True
    ):
        waits = kind == "wait"
        arguments: Event = {"microbatch": int(microbatch)} if microbatch >= 0 else {}
        if waits:
            arguments["waits for"] = action
        elif microbatch in contents:
            arguments["holds"] = contents[microbatch]
        yield {
            "ph": "X",
            "name": f"wait: {cause or 'cause not recorded'}" if waits else action,
            "cat": kind,
            "pid": process,
            "tid": _FIRST_TRACK + int(stage),
            "ts": _us(start_ms, zero_ms),
            "dur": _length_us(start_ms, end_ms, zero_ms),
            "args": arguments,
        }


def _lanes(transfers: pd.DataFrame, *, num_stages: int) -> "pd.Series[int]":
    """A track for each transfer, `stage + num_stages * n`, so that those under way at once lie on different ones."""
    free_at: dict[int, list[tuple[float, int]]] = {}
    tracks = []
    for stage, start_ms, end_ms in zip(transfers["stage"], transfers["start_ms"], transfers["end_ms"], strict=True):
        lanes = free_at.setdefault(int(stage), [])
        if lanes and lanes[0][0] <= start_ms:
            lane = lanes[0][1]
            heapreplace(lanes, (end_ms, lane))
        else:
            lane = len(lanes) + 1
            lanes.append((end_ms, lane))
            lanes.sort()
        tracks.append(int(stage) + num_stages * lane)
    return pd.Series(tracks, index=transfers.index, dtype="int64")


def _transfer_slices(transfers: pd.DataFrame, process: int, zero_ms: float, lanes: "pd.Series[int]") -> Iterator[Event]:
    columns = ("action", "microbatch", "start_ms", "end_ms", "bytes")
    for track, action, microbatch, start_ms, end_ms, moved in zip(
        lanes, *(transfers[name] for name in columns), strict=True
    ):
        yield {
            "ph": "X",
            "name": f"result of {action}",
            "cat": "transfer",
            "pid": process,
            "tid": _FIRST_TRACK + int(track),
            "ts": _us(start_ms, zero_ms),
            "dur": _length_us(start_ms, end_ms, zero_ms),
            "args": {"microbatch": int(microbatch), "bytes": int(moved)},
        }


def _arrows(compute: pd.DataFrame, process: int, zero_ms: float, num_stages: int) -> Iterator[Event]:
    """From each action to the one on a neighbouring stage that uses its product: `0F3` to `1F3`, `1B3` to `0B3`."""
    found = {
        action: (int(stage), start_ms, end_ms)
        for action, stage, start_ms, end_ms in zip(
            *(compute[name] for name in ("action", "stage", "start_ms", "end_ms")), strict=True
        )
    }
    for number, (action, (stage, start_ms, end_ms)) in enumerate(found.items()):
        parts = _WORD.fullmatch(action)
        if parts is None:
            continue
        place, letter = int(parts[1]), parts[2]
        user = found.get(f"{place + 1 if letter in 'FE' else place - 1}{letter}{parts[3]}")
        if user is None or num_stages == 1:
            continue
        # An arrow leaves from inside its slice, so the moment before its end; "bp": "e" lands it in the slice there.
        leaves_ms = max(start_ms, end_ms - 1e-6)
        # A number: Perfetto drops arrows whose id is none.
        name = {"cat": "transfer", "name": "transfer", "id": process * _MOST_ACTIONS + number, "pid": process}
        yield {"ph": "s", **name, "tid": _FIRST_TRACK + stage, "ts": _us(leaves_ms, zero_ms)}
        yield {"ph": "f", "bp": "e", **name, "tid": _FIRST_TRACK + user[0], "ts": _us(user[1], zero_ms)}
