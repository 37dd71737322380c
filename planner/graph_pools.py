"""Memory that a stage's CUDA graphs keep for themselves, beside what microbatches that are not replayed need.

The activations of a replayed microbatch lie in a lane, which no other tensor may use and which is never given back. A
stage has as many lanes as replayed microbatches are in flight in it at once, and each comes to fit the largest of them.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..traces.costs import Float, MemoryCosts, RecomputeMode
from ..traces.graph_tokens import filled_tokens
from .graph import ProgramGraph
from .loads import Loads
from .program import ActionKind

FREEING = (ActionKind.BACKWARD, ActionKind.BACKWARD_WEIGHT)
"""What frees a microbatch's activations: its whole backward, or the weight part of a split one."""


def graph_pools(
    graph: ProgramGraph, *, memory: MemoryCosts, layers: Sequence[int], loads: Loads, recompute: RecomputeMode
) -> Float:
    """Bytes of all lanes of every worker; `layers` counts those of each model part."""
    tokens = np.where(graph.microbatch >= 0, loads.tokens[graph.microbatch], 0)
    replayed = (tokens > 0) & (tokens <= memory.graph_tokens)
    # A graph holds forward and backward, and so all that either needs in passing; the head is in none.
    kept = memory.kept_bytes_per_token_layer(recompute) * np.array(layers)[graph.part] + memory.stage_bytes_per_token
    passing = memory.workspace_bytes_per_token + memory.rebuilt_bytes_per_token(recompute)
    lane = np.where(replayed, filled_tokens(tokens, replayed=replayed) * (kept + passing), 0.0)
    opens = replayed & (graph.kind == int(ActionKind.FORWARD))
    closes = replayed & np.isin(graph.kind, FREEING)
    workers = [slice(first, last) for first, last in pairwise(graph.offsets.tolist())]
    return np.array([_most(opens[own], closes[own]) * lane[own].max(initial=0.0) for own in workers])


def _most(opens: NDArray[np.bool_], closes: NDArray[np.bool_]) -> int:
    # While an action runs, what it frees is still there.
    return int((np.cumsum(opens) - np.cumsum(closes) + closes).max(initial=0))
