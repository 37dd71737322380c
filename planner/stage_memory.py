"""What each stage of a Program needs of its device's memory. Simulator, estimate and engine share the arithmetic.

A worker's memory changes at its own actions only, so that its peak follows from their order alone, without any time.
Microbatches that are replayed as CUDA graphs count twice: in the pools that graphs reserve (graph_pools.py), and among
the others, since the first ones of each size run kernel by kernel and what they had stays with the allocator.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..traces.costs import MemoryCosts, RecomputeMode
from .graph import ProgramGraph
from .graph_pools import FREEING, graph_pools
from .loads import Loads
from .program import ActionKind

Float = NDArray[np.float64]
PASSES = (ActionKind.FORWARD, ActionKind.EVALUATE, ActionKind.BACKWARD, ActionKind.BACKWARD_INPUT)
"""Actions that need memory in passing."""
REBUILDING = (ActionKind.BACKWARD, ActionKind.BACKWARD_INPUT)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassBytes:
    """Bytes of every action on a microbatch, in columns over the actions of a graph; 0 for the others."""

    activations: Float
    """Kept from the forward to what frees them."""
    logits: Float
    """The same, of head and loss on the last part."""
    passing: Float
    """Needed only while the action runs."""

    def kept(self) -> Float:
        """All that is kept from the forward on."""
        return self.activations + self.logits


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """One worker at the moment when it holds most, in bytes."""

    replica: int
    stage: int
    weights_bytes: float
    adapters_bytes: float
    """Weights, gradients, optimizer state, packed copies, and the best weights so far where they are asked for."""
    activations_bytes: float
    """Of all microbatches that are between their forward and their backward."""
    logits_bytes: float
    passing_bytes: float
    """What the pass at that moment needs for itself."""
    overhead_bytes: float
    graphs_bytes: float = 0.0
    """Reserved for microbatches that are replayed (graph_pools.py)."""
    num_in_flight: int = 0
    """Microbatches that hold activations at that moment."""

    def peak_bytes(self) -> float:
        """All of it together."""
        static = self.weights_bytes + self.adapters_bytes + self.overhead_bytes + self.graphs_bytes
        return static + self.activations_bytes + self.logits_bytes + self.passing_bytes


def pass_bytes(
    graph: ProgramGraph,
    *,
    memory: MemoryCosts,
    layers: Sequence[int],
    loads: Loads,
    recompute: RecomputeMode,
) -> PassBytes:
    """What the passes of a Program keep and need; `layers` counts those of each model part."""
    on_microbatch = graph.microbatch >= 0
    microbatch, part = graph.microbatch[on_microbatch], graph.part[on_microbatch]
    tokens, is_last = loads.tokens[microbatch], part == len(layers) - 1
    own_layers = np.array(layers)[part]
    per_layer = memory.kept_bytes_per_token_layer(recompute)
    activations, logits, passing = (np.zeros(graph.num_actions()) for _ in range(3))
    activations[on_microbatch] = (per_layer * own_layers + memory.stage_bytes_per_token) * tokens
    logits[on_microbatch] = np.where(is_last, memory.logit_bytes_per_target * loads.targets[microbatch], 0.0)
    # Head and layers run one after another, so that the larger need counts.
    layer_bytes = memory.workspace_bytes_per_token * tokens
    own = np.maximum(layer_bytes, np.where(is_last, memory.head_workspace_bytes, 0.0))
    rebuilds = np.isin(graph.kind[on_microbatch], REBUILDING)
    rebuilt = np.where(rebuilds, memory.rebuilt_bytes_per_token(recompute) * tokens, 0.0)
    runs = np.isin(graph.kind[on_microbatch], PASSES) & (tokens > 0)
    passing[on_microbatch] = np.where(runs, np.maximum(own, layer_bytes + rebuilt), 0.0)
    return PassBytes(activations=activations, logits=logits, passing=passing)


def static_memory(
    memory: MemoryCosts, layers: Sequence[int], *, num_stages: int, num_adapters: int
) -> tuple[StageMemory, ...]:
    """What each stage holds throughout, whatever runs."""
    held = [sum(layers[stage::num_stages]) for stage in range(num_stages)]
    ends = [0.0] * num_stages
    ends[0] += memory.embedding_weight_bytes
    ends[-1] += memory.head_weight_bytes
    return tuple(
        StageMemory(
            replica=0,
            stage=stage,
            weights_bytes=held[stage] * memory.layer_weight_bytes + ends[stage],
            adapters_bytes=held[stage] * num_adapters * memory.adapter_bytes_per_layer,
            activations_bytes=0.0,
            logits_bytes=0.0,
            passing_bytes=0.0,
            overhead_bytes=memory.overhead_bytes,
        )
        for stage in range(num_stages)
    )


def peak_memory(
    graph: ProgramGraph,
    *,
    memory: MemoryCosts,
    layers: Sequence[int],
    loads: Loads,
    num_adapters: int,
    recompute: RecomputeMode = "none",
) -> tuple[StageMemory, ...]:
    """Every worker, replica after replica, at its peak."""
    found = pass_bytes(graph, memory=memory, layers=layers, loads=loads, recompute=recompute)
    pools = graph_pools(graph, memory=memory, layers=layers, loads=loads, recompute=recompute)
    num_stages = graph.program.num_stages
    static = static_memory(memory, layers, num_stages=num_stages, num_adapters=num_adapters)
    return tuple(
        _at_peak(
            replace(static[worker % num_stages], replica=worker // num_stages, graphs_bytes=float(pools[worker])),
            found,
            graph,
            own=slice(first, last),
        )
        for worker, (first, last) in enumerate(pairwise(graph.offsets.tolist()))
    )


def _at_peak(static: StageMemory, found: PassBytes, graph: ProgramGraph, *, own: slice) -> StageMemory:
    kind = graph.kind[own]
    opens, closes = kind == int(ActionKind.FORWARD), np.isin(kind, FREEING)
    held = [
        _held(column, opens=opens, closes=closes)
        for column in (found.activations[own], found.logits[own], np.ones(len(kind)))
    ]
    passing = found.passing[own]
    total = held[0] + held[1] + passing
    place = int(np.argmax(total)) if len(total) else -1
    activations, logits, in_flight = (float(column[place]) if len(total) else 0.0 for column in held)
    return replace(
        static,
        activations_bytes=activations,
        logits_bytes=logits,
        passing_bytes=float(passing[place]) if len(total) else 0.0,
        num_in_flight=round(in_flight),
    )


def _held(column: Float, *, opens: NDArray[np.bool_], closes: NDArray[np.bool_]) -> Float:
    # While an action runs: all that was opened up to it, less what was closed before it.
    freed = np.cumsum(np.where(closes, column, 0.0))
    return np.asarray(np.cumsum(np.where(opens, column, 0.0)) - np.concatenate([[0.0], freed[:-1]])[: len(freed)])
