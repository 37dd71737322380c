"""Why workers stand still: the gaps between their actions, each with its cause. One definition for every interpreter.

- `warmup`: up to the start of the worker's first backward; `cooldown`: after its last forward, up to the run's end.
- `transfer`: transfers on the chain of actions that kept the worker waiting, as far as that chain begins with the
  worker's own earlier work: with faster links it would have waited that much less. A chain that leads elsewhere, to a
  slower stage, is no fault of the links.
- `dependency`: the microbatch it waited for entered a pipeline that was not full, because forwards had been held back
  for an optimizer step (or by a flush, which holds back all of them).
- `imbalance`: everything else: costs differ between stages or microbatches.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import ProgramGraph, compiled
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
    on_microbatch = graph.microbatch >= 0
    held_back = np.append(_entered_unfilled(graph), False)
    cause[on_microbatch & held_back[graph.microbatch]] = CAUSES.index("dependency")
    forward = graph.kind == int(ActionKind.FORWARD)
    backward = (graph.kind == int(ActionKind.BACKWARD)) | (graph.kind == int(ActionKind.BACKWARD_INPUT))
    for first, last in zip(graph.offsets[:-1].tolist(), graph.offsets[1:].tolist(), strict=True):
        forwards = np.flatnonzero(forward[first:last])
        backwards = np.flatnonzero(backward[first:last])
        if len(forwards):
            cause[first + int(forwards[-1]) + 1 : last] = CAUSES.index("cooldown")
        if len(backwards):
            cause[first : first + int(backwards[0]) + 1] = CAUSES.index("warmup")
    return cause


def _entered_unfilled(graph: ProgramGraph) -> NDArray[np.bool_]:
    # Microbatches whose forward on stage 0 found room for more than one, after the pipeline had begun to return.
    program = graph.program
    found = np.zeros(int(graph.microbatch.max(initial=-1)) + 1, dtype=bool)
    for replica in range(program.num_replicas):
        columns = program.columns(stage=0, replica=replica)
        entered = columns.kind == int(ActionKind.FORWARD)
        left = (columns.kind == int(ActionKind.BACKWARD)) | (columns.kind == int(ActionKind.BACKWARD_INPUT))
        in_flight = np.cumsum(entered.astype(np.int64) - left.astype(np.int64))
        unfilled = (in_flight < in_flight.max(initial=0)) & (np.cumsum(left) > 0)
        found[columns.microbatch[entered]] = unfilled[entered]
    return found
