"""A run that dies and goes on from its last checkpoint: what was lost, and what had to be run again."""

import numpy as np
import pandas as pd

from ..planner.graph import ProgramGraph
from ..planner.program import ActionKind
from ..planner.recurrence import Completion
from ..traces.timeline import Timeline
from .cluster import Restart


def last_checkpoint(graph: ProgramGraph, completion: Completion, restart: Restart) -> int:
    """The last slot whose checkpoint was whole when the run died; -1 where there was none.

    A checkpoint is taken after every `checkpoint_every`-th slot and is whole once every worker has finished all
    gradients up to that slot. (The engine's is whole a little later where a stage behind the first still has to take a
    step that stage 0 had taken.)
    """
    gradients = np.isin(graph.kind, (int(ActionKind.BACKWARD), int(ActionKind.BACKWARD_WEIGHT)))
    slots = graph.microbatch[gradients] // graph.program.num_replicas
    through = np.zeros(int(slots.max(initial=-1)) + 1)
    np.maximum.at(through, slots, completion.end_ms[gradients])
    done = int(np.searchsorted(np.maximum.accumulate(through), restart.at_ms, side="right"))
    return done // restart.checkpoint_every * restart.checkpoint_every - 1


def joined(before: Timeline, after: Timeline, restart: Restart) -> Timeline:
    """The first timeline up to the failure, a wait with the cause `restart`, and the second timeline after it."""
    begin = restart.at_ms + restart.for_ms
    first = before.frame[before.frame["start_ms"] < restart.at_ms]
    first = first.assign(end_ms=first["end_ms"].clip(upper=restart.at_ms))
    second = after.frame.assign(start_ms=after.frame["start_ms"] + begin, end_ms=after.frame["end_ms"] + begin)
    workers = [(replica, stage) for replica in range(before.num_replicas) for stage in range(before.num_stages)]
    between = pd.DataFrame(
        {
            "replica": [replica for replica, _ in workers],
            "stage": [stage for _, stage in workers],
            "kind": "wait",
            "action": "",
            "microbatch": -1,
            "start_ms": restart.at_ms,
            "end_ms": begin,
            "bytes": 0,
            "cause": "restart",
        }
    )
    counters = [
        before.counters[before.counters["ms"] < restart.at_ms],
        after.counters.assign(ms=after.counters["ms"] + begin),
    ]
    return Timeline.from_frame(
        pd.concat([first, between, second], ignore_index=True),
        source=before.source,
        origin=before.origin,
        num_stages=before.num_stages,
        num_replicas=before.num_replicas,
        counters=pd.concat(counters, ignore_index=True),
    )
