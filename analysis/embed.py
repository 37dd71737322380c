"""Timelines as data inside the report's page: columns of numbers in base64, 22 bytes a span before encoding."""

import base64
import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, DTypeLike

from ..planner.plan import Plan
from ..traces.timeline import Timeline
from .actions import BACKWARDS, FORWARDS, NAMES, letters, step_targets
from .causes import CAUSES
from .style import CAUSE_HATCHES, FORWARD_TINT, adapter_colour, tint

MOST_SPANS = 400_000
"""Spans of a timeline that a page can hold and stay quick; what comes later in the run is left out, and said so."""
_WAIT = len(NAMES)
"""Code of a wait; the codes before it are the positions of NAMES."""


def page_data(timelines: Sequence[Timeline], plan: Plan | None) -> str:
    """What report.js draws, as JSON that is safe inside a script element."""
    causes = [*CAUSES]
    for timeline in timelines:
        causes += [cause for cause in timeline.frame["cause"].unique() if cause and cause not in causes]
    content = {
        "actions": list(NAMES.values()),
        "letters": "".join(NAMES),
        "forwards": [list(NAMES).index(letter) for letter in FORWARDS],
        "backwards": [list(NAMES).index(letter) for letter in BACKWARDS],
        "step": list(NAMES).index("S"),
        "causes": causes,
        "hatches": [CAUSE_HATCHES.get(cause, "") for cause in causes],
        "adapters": _adapters(plan),
        "microbatches": _contents(plan),
        "timelines": [_timeline(timeline, causes) for timeline in timelines],
    }
    # A name with "</script>" in it must not end the element.
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def _adapters(plan: Plan | None) -> list[dict[str, str]]:
    names = [job.name for job in plan.jobs] if plan is not None else ["microbatch"]
    return [
        {
            "name": name,
            "colour": adapter_colour(adapter),
            "pale": tint(adapter_colour(adapter), FORWARD_TINT),
        }
        for adapter, name in enumerate(names)
    ]


def _contents(plan: Plan | None) -> list[list[int]]:
    """Of each microbatch: adapter, tokens, adapter, tokens, ..."""
    if plan is None:
        return []
    return [[number for share in batch.adapter_tokens() for number in share] for batch in plan.microbatches]


def _timeline(timeline: Timeline, causes: Sequence[str]) -> dict[str, object]:
    shown = timeline.frame[timeline.frame["kind"] != "transfer"]
    begin_ms = float(shown["start_ms"].min()) if len(shown) else 0.0
    whole_ms = float(shown["end_ms"].max()) - begin_ms if len(shown) else 0.0
    left_out = max(len(shown) - MOST_SPANS, 0)
    if left_out:
        shown = shown.loc[shown["start_ms"].nsmallest(MOST_SPANS, keep="first").index.sort_values()]
    row = shown["replica"] * timeline.num_stages + shown["stage"]
    code, first, second = _codes(shown)
    known = {cause: place for place, cause in enumerate(causes)}
    names = [f"stage {stage}" for stage in range(timeline.num_stages)]
    if timeline.num_replicas > 1:
        names = [f"replica {replica} {name}" for replica in range(timeline.num_replicas) for name in names]
    return {
        "source": timeline.source,
        "origin": timeline.origin,
        "rows": names,
        "whole_ms": whole_ms,
        "left_out": left_out,
        "offsets": np.searchsorted(row.to_numpy(), np.arange(len(names) + 1)).tolist(),
        "start": _packed(shown["start_ms"] - begin_ms, np.float64),
        "length": _packed(shown["end_ms"] - shown["start_ms"], np.float32),
        "code": _packed(code, np.uint8),
        "first": _packed(first, np.int32),
        "second": _packed(second, np.int32),
        "cause": _packed(shown["cause"].map(known).fillna(255), np.uint8),
    }


def _codes(shown: pd.DataFrame) -> tuple[ArrayLike, ArrayLike, ArrayLike]:
    """Per span: what it is, then its microbatch, or adapter and global batch of a Step or Reduce."""
    order = {letter: place for place, letter in enumerate(NAMES)}
    found = letters(shown["action"])
    code = np.array([order.get(letter, 0) for letter in found.tolist()], dtype=np.uint8)
    first = shown["microbatch"].to_numpy().astype(np.int32)
    second = np.full(len(shown), -1, dtype=np.int32)
    on_adapter = np.isin(found, ("S", "R"))
    targets = step_targets(shown["action"][on_adapter])
    first[on_adapter], second[on_adapter] = targets["adapter"], targets["global_batch"]
    waits = shown["kind"].to_numpy() == "wait"
    # A wait keeps in `second` what it waited for.
    second[waits] = np.where(on_adapter[waits], -1, code[waits])
    first[waits & on_adapter] = -1
    code[waits] = _WAIT
    return code, first, second


def _packed(values: ArrayLike, dtype: DTypeLike) -> str:
    little = np.ascontiguousarray(np.asarray(values), dtype=np.dtype(dtype).newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode("ascii")
