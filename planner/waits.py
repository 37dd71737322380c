"""Why workers stand still: the gaps between their actions, each with its cause. One definition for every interpreter.

- `warmup`: up to the start of the worker's first backward; `cooldown`: after its last forward, up to the run's end.
- `transfer`: transfers on the chain of actions that kept the worker waiting, as far as that chain begins with the
  worker's own earlier work: with faster links it would have waited that much less. A chain that leads elsewhere, to a
  slower stage, is no fault of the links.
- `dependency`: forwards were being held back for an optimizer step (or by a flush, which holds back all of them): the
  worker waited for a backward though it had room for another forward, or for a microbatch that entered a pipeline
  drained that way.
- `imbalance`: everything else: costs differ between stages or microbatches.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled
from .graph import ProgramGraph
from .program import ActionKind

Float = NDArray[np.float64]
CAUSES = ("warmup", "cooldown", "imbalance", "dependency", "transfer")
_NO_GAP = 1e-9
"""Gaps below this part of the run are rounding, not waits."""
_LAPS = 4
"""A chain is followed through this many times the model parts: once down and up is two."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Waits:
    """Gaps of all workers, in columns of one length."""

    worker: NDArray[np.int64]
    action: NDArray[np.int64]
    """The action waited for, numbered through; the worker's last one for the gap after it."""
    start_ms: Float
    end_ms: Float
    cause: NDArray[np.int64]
    """Position in CAUSES."""


def find_waits(graph: ProgramGraph, *, start_ms: Float, end_ms: Float, arrival_ms: Float) -> Waits:
    """Gaps between the actions of each worker, from the run's start at 0 to its last end.

    `start_ms`, `end_ms`: per action; `arrival_ms`: when what the action sent had arrived (its end where that is not
    known: no wait is then put down to a transfer).
    """
    makespan = float(end_ms.max(initial=0.0))
    before = np.zeros(len(end_ms))
    before[1:] = end_ms[:-1]
    used = np.diff(graph.offsets) > 0
    before[graph.offsets[:-1][used]] = 0.0
    cause = _cause_of_gap(graph)
    shares = np.zeros(len(end_ms))
    limit = _LAPS * graph.program.num_stages * graph.program.num_chunks
    least = _NO_GAP * makespan
    _shares()(graph.offsets, graph.worker, graph.sender, before, start_ms, end_ms, arrival_ms, limit, least, shares)
    shares[cause <= CAUSES.index("cooldown")] = 0.0
    parted = start_ms - shares
    actions = np.arange(len(end_ms), dtype=np.int64)
    lasts = graph.offsets[1:][used] - 1
    action = np.concatenate([actions, actions, lasts])
    starts = np.concatenate([before, parted, end_ms[lasts]])
    ends = np.concatenate([parted, start_ms, np.full(len(lasts), makespan)])
    causes = np.concatenate(
        [cause, np.full(len(actions), CAUSES.index("transfer")), np.full(len(lasts), CAUSES.index("cooldown"))]
    )
    kept = ends - starts > least
    return Waits(
        worker=graph.worker[action[kept]].astype(np.int64),
        action=action[kept],
        start_ms=starts[kept],
        end_ms=ends[kept],
        cause=causes[kept].astype(np.int64),
    )


def _transfer_shares(
    offsets: Any,
    worker: Any,
    sender: Any,
    before: Any,
    start_ms: Any,
    end_ms: Any,
    arrival_ms: Any,
    limit: int,
    least: float,
    shares: Any,
) -> None:
    # Walks back from each action that waited, along whatever came last, until it meets the waiting worker again.
    for action in range(len(worker)):
        gap = start_ms[action] - before[action]
        if gap <= least or sender[action] < 0:
            continue
        transfers = 0.0
        here = action
        for _ in range(limit):
            awaited = sender[here]
            if awaited >= 0 and arrival_ms[awaited] >= before[here]:
                transfers += arrival_ms[awaited] - end_ms[awaited]
                here = awaited
            elif here > offsets[worker[here]]:
                here = here - 1
            else:
                break
            if worker[here] == worker[action]:
                shares[action] = min(gap, transfers)
                break


@cache
def _shares() -> Any:
    return compiled(_transfer_shares)


def _cause_of_gap(graph: ProgramGraph) -> NDArray[np.int64]:
    cause = np.full(graph.num_actions(), CAUSES.index("imbalance"), dtype=np.int64)
    forward = graph.kind == int(ActionKind.FORWARD)
    backward = (graph.kind == int(ActionKind.BACKWARD)) | (graph.kind == int(ActionKind.BACKWARD_INPUT))
    change = forward.astype(np.int64) - backward.astype(np.int64)
    # A Step waits for the microbatch of the forward it stands before.
    steps = np.flatnonzero(graph.kind == int(ActionKind.STEP))
    others = np.append(np.flatnonzero(graph.kind != int(ActionKind.STEP)), len(graph.kind))
    microbatch = np.append(graph.microbatch, -1)
    microbatch[steps] = microbatch[others[np.searchsorted(others, steps)]]
    held_back = np.zeros(int(graph.microbatch.max(initial=-1)) + 2, dtype=bool)
    for worker, (first, last) in enumerate(pairwise(graph.offsets.tolist())):
        own = slice(first, last)
        in_flight = np.cumsum(change[own])
        returning = np.cumsum(backward[own]) > 0
        # Room for more than one after a forward on stage 0: the pipeline had drained before this microbatch.
        unfilled = returning & (in_flight < in_flight.max(initial=0))
        if worker % graph.program.num_stages == 0:
            held_back[microbatch[own][unfilled & forward[own]]] = True
        # A backward that finds room for another forward: that one is being held back.
        draining = backward[own] & (in_flight + 1 < in_flight.max(initial=0))
        cause[own][draining | held_back[microbatch[own]]] = CAUSES.index("dependency")
        forwards, backwards = np.flatnonzero(forward[own]), np.flatnonzero(backward[own])
        if len(forwards):
            cause[own][int(forwards[-1]) + 1 :] = CAUSES.index("cooldown")
        if len(backwards):
            cause[own][: int(backwards[0]) + 1] = CAUSES.index("warmup")
    return cause
