"""When every action of a Program starts and ends, without a simulator: a max-plus recurrence over its graph.

start = max(end of the action before it on its worker, arrivals of what it waits for); end = start + duration. It is
exact wherever transfers do not contend and nothing is drawn at random; the simulator agrees with it to rounding.
With numba (optional) one pass takes a few nanoseconds an action; without, plain Python runs the same loop, and
`batched_makespans_ms` runs many cost vectors at once in numpy.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled
from .costing import ProgramCosts
from .graph import ProgramGraph

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
    """Start and end of every action, numbered through as in ProgramGraph, and when its message arrives."""

    start_ms: Float
    end_ms: Float
    arrival_ms: Float
    """When what the action sends is there; its end where it sends nothing."""

    def makespan_ms(self) -> float:
        """End of the last action; the first starts at 0."""
        return float(self.end_ms.max(initial=0.0))


def completion_times(costs: ProgramCosts, *, with_numba: bool = True) -> Completion:
    """When each action starts and ends under these costs; in plain Python without numba, or on wish."""
    start, end = _run(costs, with_numba=with_numba, keep_start=True)
    start_ms, end_ms = (np.asarray(column, dtype=np.float64) for column in (start, end))
    return Completion(start_ms=start_ms, end_ms=end_ms, arrival_ms=end_ms + costs.transfer_ms)


def _run(costs: ProgramCosts, *, with_numba: bool, keep_start: bool) -> tuple[Any, Any]:
    graph = costs.graph
    fast = with_numba and uses_numba()
    convert = _as_array if fast else _as_list
    end = convert(np.empty(graph.num_actions()))
    start = convert(np.empty(graph.num_actions() if keep_start else 0))
    (_walk() if fast else _pass)(
        convert(graph.run_first),
        convert(graph.run_end),
        convert(graph.run_worker),
        convert(np.zeros(len(graph.offsets) - 1)),
        convert(graph.sender),
        convert(graph.has_extras),
        convert(graph.extra_first),
        convert(graph.extra_action),
        convert(costs.extra_ms),
        convert(costs.duration_ms),
        convert(costs.transfer_ms),
        costs.blocking,
        keep_start,
        start,
        end,
    )
    return start, end


def uses_numba() -> bool:
    """Whether numba is installed."""
    return _walk() is not _pass


def makespan_ms(costs: ProgramCosts) -> float:
    """Time from the first start to the last end."""
    _, end = _run(costs, with_numba=True, keep_start=False)
    return float(max(end, default=0.0)) if isinstance(end, list) else float(end.max(initial=0.0))


def batched_makespans_ms(costs: ProgramCosts, *, duration_ms: Float, transfer_ms: Float | None = None) -> Float:
    """Makespans of one graph under many costs: [scenarios, actions] in, [scenarios] out.

    Needs no numba: one numpy operation serves all scenarios of an action, so it pays from some ten scenarios on.
    `transfer_ms` defaults to that of `costs` in every scenario.
    """
    graph = costs.graph
    durations = np.ascontiguousarray(duration_ms.T)
    transfers = np.ascontiguousarray(transfer_ms.T) if transfer_ms is not None else costs.transfer_ms[:, None]
    ends = np.zeros((graph.num_actions() + 1, durations.shape[1]))
    extra_first, extra_action = graph.extra_first.tolist(), graph.extra_action.tolist()
    previous, sender = _previous(graph).tolist(), graph.sender.tolist()
    for action in graph.order().tolist():
        # Row -1 of `ends` stays 0: the first action of a worker follows the start of the run.
        start = ends[previous[action]]
        if costs.blocking and previous[action] >= 0:
            start = start + transfers[previous[action]]
        if sender[action] >= 0:
            start = np.maximum(start, ends[sender[action]] + transfers[sender[action]])
        for place in range(extra_first[action], extra_first[action + 1]):
            start = np.maximum(start, ends[extra_action[place]] + costs.extra_ms[place])
        np.add(start, durations[action], out=ends[action])
    makespans: Float = ends.max(axis=0)
    return makespans


def _previous(graph: ProgramGraph) -> NDArray[np.int64]:
    previous = np.arange(-1, graph.num_actions() - 1, dtype=np.int64)
    firsts = graph.offsets[:-1]
    previous[firsts[firsts < graph.num_actions()]] = -1
    return previous


def _pass(
    run_first: Any,
    run_end: Any,
    run_worker: Any,
    free_ms: Any,
    sender: Any,
    has_extras: Any,
    extra_first: Any,
    extra_action: Any,
    extra_ms: Any,
    duration_ms: Any,
    transfer_ms: Any,
    blocking: bool,
    keep_start: bool,
    start_ms: Any,
    end_ms: Any,
) -> None:
    # Runs as it is, on lists, also of exact fractions; compiled, on arrays. `free_ms`: since when each worker is free.
    begin = free_ms[0] * 0
    for run in range(len(run_first)):
        free = free_ms[run_worker[run]]
        for action in range(run_first[run], run_end[run]):
            # The later of two is chosen, not branched on: no processor foretells which it is, and a wrong guess costs
            # as much as the rest of an action (6.8 instead of 3.0 ns, 8 stages x 10,000 microbatches, 2026-11-25).
            # Hence `begin`: with `free` in its place, the compiler makes a branch of it again.
            arrival = begin
            awaited = sender[action]
            if awaited >= 0:
                arrival = end_ms[awaited] + transfer_ms[awaited]
            start = arrival if arrival > free else free
            if has_extras[action]:
                for place in range(extra_first[action], extra_first[action + 1]):
                    arrival = end_ms[extra_action[place]] + extra_ms[place]
                    if arrival > start:
                        start = arrival
            if keep_start:
                start_ms[action] = start
            free = start + duration_ms[action]
            end_ms[action] = free
            if blocking:
                free = free + transfer_ms[action]
        free_ms[run_worker[run]] = free


@cache
def _walk() -> Any:
    return compiled(_pass)


def _as_array(values: Any) -> Any:
    return np.ascontiguousarray(values)


def _as_list(values: Any) -> Any:
    return values.tolist()
