"""Why a measured run waited, by the same rule as a simulated one (planner/waits.py).

An engine records what it computed, not why it stood still. Its order of actions is its Program, so the Program's graph
tells what each action had been waiting for, and the recorded times tell since when that was there.
"""

from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..planner.errors import PlanError
from ..planner.graph import ProgramGraph, program_graph
from ..planner.program import Program
from ..planner.waits import CAUSES, find_waits
from ..traces.timeline import Timeline


def explain_waits(timeline: Timeline) -> Timeline:
    """The timeline with a wait span, and its cause, for every gap; as it is where it names causes already.

    Spans of kind wait without a cause are replaced. A timeline that holds no whole Program (one of an interrupted run)
    comes back as it is.
    """
    frame = timeline.frame
    compute = timeline.compute()
    twice = compute.duplicated(["replica", "stage", "action"]).any()
    if (frame["cause"] != "").any() or twice or not len(compute):
        return timeline
    try:
        graph = _executed_graph(timeline, compute)
    except PlanError:
        return timeline
    begin_ms = float(compute["start_ms"].min())
    start_ms, end_ms = (compute[name].to_numpy() - begin_ms for name in ("start_ms", "end_ms"))
    waits = find_waits(graph, start_ms=start_ms, end_ms=end_ms, arrival_ms=_arrivals_ms(timeline, compute) - begin_ms)
    awaited = compute.iloc[waits.action]
    found = awaited.assign(
        kind="wait",
        start_ms=waits.start_ms + begin_ms,
        end_ms=waits.end_ms + begin_ms,
        bytes=0,
        cause=pd.Series(np.array(CAUSES)[waits.cause], index=awaited.index, dtype=frame["cause"].dtype),
    )
    return Timeline.from_frame(
        pd.concat([frame[frame["kind"] != "wait"], found]),
        source=timeline.source,
        origin=timeline.origin,
        num_stages=timeline.num_stages,
        num_replicas=timeline.num_replicas,
        counters=timeline.counters,
    )


def _executed_graph(timeline: Timeline, compute: pd.DataFrame) -> ProgramGraph:
    # Rows are in order of replica, stage and start: the order in which a Program numbers its actions through.
    workers = (compute["replica"] * timeline.num_stages + compute["stage"]).to_numpy()
    words = compute["action"].to_numpy()
    bounds = np.searchsorted(workers, np.arange(timeline.num_stages * timeline.num_replicas + 1))
    lines = [" ".join(words[first:last]) for first, last in pairwise(bounds)]
    return program_graph(
        Program.from_text("\n".join(lines), num_stages=timeline.num_stages, num_replicas=timeline.num_replicas)
    )


def _arrivals_ms(timeline: Timeline, compute: pd.DataFrame) -> NDArray[np.float64]:
    # When what an action sent had arrived: the end of its transfer span, of the action itself where none is recorded.
    sent = timeline.frame[timeline.frame["kind"] == "transfer"]
    keys = ["replica", "stage", "action"]
    arrived = compute[keys].merge(sent.groupby(keys, as_index=False)["end_ms"].max(), on=keys, how="left")["end_ms"]
    own_end_ms = compute["end_ms"].to_numpy()
    return np.asarray(np.fmax(arrived.to_numpy(), own_end_ms), dtype=np.float64)
