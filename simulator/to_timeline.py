"""From start and end times to a Timeline: compute, transfer and wait spans, and memory over time."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..planner.costing import ProgramCosts
from ..planner.graph import ProgramGraph
from ..planner.program import LETTERS, ActionKind
from ..planner.recurrence import Completion
from ..planner.waits import CAUSES, find_waits
from ..traces.timeline import Timeline


def to_timeline(
    costs: ProgramCosts,
    completion: Completion,
    *,
    origin: str,
    message_bytes: NDArray[np.int64] | None = None,
    counters: pd.DataFrame | None = None,
) -> Timeline:
    """The Timeline of one simulated run.

    `message_bytes`: per action, what it sends (0 where nothing). A transfer span belongs to the stage that sends.
    A wait names the action waited for; the wait after a worker's last action names that one.
    """
    graph = costs.graph
    words = action_words(graph)
    sent = np.flatnonzero(completion.arrival_ms > completion.end_ms)
    waits = find_waits(graph, start_ms=completion.start_ms, end_ms=completion.end_ms, arrival_ms=completion.arrival_ms)
    actions = np.concatenate([np.arange(graph.num_actions()), sent, waits.action])
    counts = [graph.num_actions(), len(sent), len(waits.action)]
    # Words as shared objects: arrays of characters take twice as long to become a column.
    kinds = np.repeat(np.array(["compute", "transfer", "wait"], dtype=object), counts)
    causes = np.array([*CAUSES, ""], dtype=object)[np.concatenate([np.full(sum(counts[:2]), -1), waits.cause])]
    nothing = np.zeros(graph.num_actions(), dtype=np.int64)
    moved = nothing if message_bytes is None else message_bytes
    stages = graph.program.num_stages
    frame = pd.DataFrame(
        {
            "replica": (graph.worker[actions] // stages).astype(np.int64),
            "stage": (graph.worker[actions] % stages).astype(np.int64),
            "kind": kinds,
            "action": words[actions],
            "microbatch": graph.microbatch[actions].astype(np.int64),
            "start_ms": np.concatenate([completion.start_ms, completion.end_ms[sent], waits.start_ms]),
            "end_ms": np.concatenate([completion.end_ms, completion.arrival_ms[sent], waits.end_ms]),
            "bytes": np.concatenate([nothing, moved[sent], np.zeros(len(waits.action), dtype=np.int64)]),
            "cause": causes,
        }
    ).astype({"kind": "str", "action": "str", "cause": "str"})
    return Timeline.from_frame(
        frame,
        source="simulated",
        origin=origin,
        num_stages=stages,
        num_replicas=graph.program.num_replicas,
        counters=counters,
    )


def action_words(graph: ProgramGraph) -> NDArray[np.object_]:
    """The Program's word for every action, such as 0F3 or 0S2.5."""
    adapters = np.concatenate([columns.adapter for columns in graph.program.workers]).tolist()
    batches = np.concatenate([columns.global_batch for columns in graph.program.workers]).tolist()
    on_adapter = (int(ActionKind.REDUCE), int(ActionKind.STEP))
    rows = zip(graph.part.tolist(), graph.kind.tolist(), graph.microbatch.tolist(), adapters, batches, strict=True)
    words = [
        f"{part}{LETTERS[kind]}{adapter}.{batch}" if kind in on_adapter else f"{part}{LETTERS[kind]}{microbatch}"
        for part, kind, microbatch, adapter, batch in rows
    ]
    return np.array(words, dtype=object)
