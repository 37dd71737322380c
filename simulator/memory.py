"""Memory over time: what each worker holds, from its first action to its last, and where that would not fit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..planner.graph import ProgramGraph
from ..planner.loads import Loads
from ..planner.program import ActionKind
from ..planner.recurrence import Completion
from ..traces.costs import MemoryCosts, StageCost
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


def memory_counters(
    graph: ProgramGraph,
    completion: Completion,
    *,
    memory: MemoryCosts,
    parts: Sequence[StageCost],
    loads: Loads,
    num_adapters: int,
    recompute: bool = False,
) -> pd.DataFrame:
    """Bytes held by every worker whenever they change: columns replica, stage, ms, bytes.

    Throughout: weights of its layers, of embedding and head where it has them, adapters with gradients and optimizer,
    overhead. From the start of a forward to the end of the last backward part of the same microbatch: activations (or,
    with `recompute`, its input, and during the backward the activations too), and on the last part the logits.
    """
    kept, logits, rebuilt = _bytes_of_passes(graph, memory=memory, parts=parts, loads=loads, recompute=recompute)
    opens = graph.kind == int(ActionKind.FORWARD)
    closes = _closing(graph)
    backward = (graph.kind == int(ActionKind.BACKWARD)) | (graph.kind == int(ActionKind.BACKWARD_INPUT))
    actions = np.concatenate([np.flatnonzero(mask) for mask in (opens, closes, backward, backward)])
    held = kept + logits
    change = np.concatenate([held[opens], -held[closes], rebuilt[backward], -rebuilt[backward]])
    times = np.concatenate(
        [
            completion.start_ms[opens],
            completion.end_ms[closes],
            completion.start_ms[backward],
            completion.end_ms[backward],
        ]
    )
    static = static_bytes(memory, parts, num_stages=graph.program.num_stages, num_adapters=num_adapters)
    frames = []
    for worker in range(len(graph.program.workers)):
        own = graph.worker[actions] == worker
        frames.append(_curve(times[own], change[own], static[worker % len(static)]))
    stages = graph.program.num_stages
    tables = [
        frame.assign(replica=worker // stages, stage=worker % stages)[["replica", "stage", "ms", "bytes"]]
        for worker, frame in enumerate(frames)
    ]
    return pd.concat(tables, ignore_index=True) if tables else no_counters()


def _bytes_of_passes(
    graph: ProgramGraph, *, memory: MemoryCosts, parts: Sequence[StageCost], loads: Loads, recompute: bool
) -> tuple[Float, Float, Float]:
    # Per action on a microbatch: bytes kept between forward and backward, logits, and what the backward rebuilds.
    on_microbatch = graph.microbatch >= 0
    microbatch, part = graph.microbatch[on_microbatch], graph.part[on_microbatch]
    layers = np.array([stage.num_layers for stage in parts])
    activations, logits, rebuilt = (np.zeros(graph.num_actions()) for _ in range(3))
    full = memory.activation_bytes_per_token_layer * loads.tokens[microbatch] * layers[part]
    inputs = memory.boundary_bytes_per_token * loads.tokens[microbatch]
    activations[on_microbatch] = inputs * layers[part] if recompute else full
    # One layer at a time is rebuilt.
    rebuilt[on_microbatch] = full / layers[part] if recompute else 0.0
    logits[on_microbatch] = np.where(
        part == len(parts) - 1, memory.logit_bytes_per_target * loads.targets[microbatch], 0.0
    )
    return activations, logits, rebuilt


def _closing(graph: ProgramGraph) -> NDArray[np.bool_]:
    # The action that frees a microbatch's activations: its whole backward, or the weight part of a split one.
    return np.isin(graph.kind, (int(ActionKind.BACKWARD), int(ActionKind.BACKWARD_WEIGHT)))


def static_bytes(
    memory: MemoryCosts, parts: Sequence[StageCost], *, num_stages: int, num_adapters: int
) -> tuple[float, ...]:
    """What each stage holds throughout, whatever runs."""
    held = [memory.overhead_bytes] * num_stages
    for part, cost in enumerate(parts):
        per_layer = memory.layer_weight_bytes + num_adapters * memory.adapter_bytes_per_layer
        held[part % num_stages] += cost.num_layers * per_layer
    held[0] += memory.embedding_weight_bytes
    held[-1] += memory.head_weight_bytes
    return tuple(held)


def _curve(times: Float, change: Float, static: float) -> pd.DataFrame:
    # Frees come before allocations of the same moment: the bytes are then the same ones.
    order = np.lexsort((change, times))
    moments = np.concatenate([[0.0], times[order]])
    held = np.concatenate([[static], static + np.cumsum(change[order])])
    last = np.append(moments[1:] != moments[:-1], True)
    moments, whole = moments[last], np.rint(held[last]).astype(np.int64)
    changed = np.append(True, whole[1:] != whole[:-1])
    return pd.DataFrame({"ms": moments[changed], "bytes": whole[changed]})


def peak_bytes(counters: pd.DataFrame, *, num_stages: int, num_replicas: int = 1) -> tuple[int, ...]:
    """Peak of every worker, replica after replica; empty where memory was not tracked."""
    if counters.empty:
        return ()
    peaks = counters.groupby(["replica", "stage"])["bytes"].max()
    return tuple(int(peaks.loc[(replica, stage)]) for replica in range(num_replicas) for stage in range(num_stages))


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
