"""Memory over time: what each worker holds, from its first action to its last, and where that would not fit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..planner.graph import ProgramGraph
from ..planner.graph_pools import FREEING, graph_pools
from ..planner.loads import Loads
from ..planner.program import ActionKind
from ..planner.recurrence import Completion
from ..planner.stage_memory import PASSES, pass_bytes, static_memory
from ..traces.costs import MemoryCosts, RecomputeMode, StageCost
from ..traces.timeline import no_counters

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfMemory:
    """The first moment at which a stage would need more than its device has."""

    replica: int
    stage: int
    ms: float
    needed_bytes: int
    capacity_bytes: int


def tracks_memory(memory: MemoryCosts) -> bool:
    """Whether a profile says anything about memory."""
    return replace(memory, capacity_bytes=math.inf) != MemoryCosts()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """What one worker holds over time: from `ms[i]` on, `bytes[i]`."""

    ms: Float
    bytes: NDArray[np.int64]


def memory_curves(
    graph: ProgramGraph,
    completion: Completion,
    *,
    memory: MemoryCosts,
    parts: Sequence[StageCost],
    loads: Loads,
    num_adapters: int,
    recompute: RecomputeMode = "none",
) -> tuple[Curve, ...]:
    """Bytes held by every worker whenever they change.

    Throughout: weights of its layers, of embedding and head where it has them, adapters with gradients and optimizer,
    what graphs reserve, overhead. From the start of a forward to the end of the last backward part of the same
    microbatch: what `recompute` keeps of the activations, and on the last part the logits. While a pass runs: what it
    needs and computes again.
    """
    layers = [stage.num_layers for stage in parts]
    found = pass_bytes(graph, memory=memory, layers=layers, loads=loads, recompute=recompute)
    kept, passing = found.kept(), found.passing
    static = static_memory(memory, layers, num_stages=graph.program.num_stages, num_adapters=num_adapters)
    pools = graph_pools(graph, memory=memory, layers=layers, loads=loads, recompute=recompute)
    curves = []
    for worker, (first, last) in enumerate(pairwise(graph.offsets.tolist())):
        own = slice(first, last)
        kind, start, end = graph.kind[own], completion.start_ms[own], completion.end_ms[own]
        opens, closes, runs = kind == int(ActionKind.FORWARD), np.isin(kind, FREEING), np.isin(kind, PASSES)
        moments = [start[opens], end[closes], start[runs], end[runs]]
        changes = [kept[own][opens], -kept[own][closes], passing[own][runs], -passing[own][runs]]
        held = static[worker % len(static)].peak_bytes() + pools[worker]
        curves.append(_curve(np.concatenate(moments), np.concatenate(changes), held))
    return tuple(curves)


def memory_counters(curves: Sequence[Curve], *, num_stages: int) -> pd.DataFrame:
    """The curves of all workers as a Timeline's counters: columns replica, stage, ms, bytes."""
    if not curves:
        return no_counters()
    workers = np.repeat(np.arange(len(curves)), [len(curve.ms) for curve in curves])
    return pd.DataFrame(
        {
            "replica": workers // num_stages,
            "stage": workers % num_stages,
            "ms": np.concatenate([curve.ms for curve in curves]),
            "bytes": np.concatenate([curve.bytes for curve in curves]),
        }
    )


def _curve(moments: Float, changes: Float, static: float) -> Curve:
    # Frees come before allocations of the same moment: the bytes are then the same ones.
    order = np.lexsort((changes, moments))
    ms = np.concatenate([[0.0], moments[order]])
    held = np.rint(np.concatenate([[static], static + np.cumsum(changes[order])])).astype(np.int64)
    last = np.append(ms[1:] != ms[:-1], True)
    ms, held = ms[last], held[last]
    changed = np.append(True, held[1:] != held[:-1])
    return Curve(ms=ms[changed], bytes=held[changed])


def peak_bytes(curves: Sequence[Curve], *, until_ms: float = math.inf) -> tuple[int, ...]:
    """Peak of every worker before a moment."""
    return tuple(int(curve.bytes[curve.ms < until_ms].max(initial=0)) for curve in curves)


def first_misfit(counters: pd.DataFrame, *, capacity_bytes: float) -> OutOfMemory | None:
    """The first moment at which a worker exceeds this capacity, None if none does."""
    over = counters[counters["bytes"] > capacity_bytes]
    if over.empty:
        return None
    row = over.sort_values("ms", kind="stable").iloc[0]
    return OutOfMemory(
        replica=int(row["replica"]),
        stage=int(row["stage"]),
        ms=float(row["ms"]),
        needed_bytes=int(row["bytes"]),
        capacity_bytes=int(capacity_bytes),
    )
