"""The few numbers of a run that a sweep keeps, without spans: the fast way to what analysis takes from a Timeline."""

from dataclasses import dataclass
from math import inf

import numpy as np

from ..planner.graph import ProgramGraph
from ..planner.loads import Loads
from ..planner.plan import Plan
from ..planner.program import ActionKind
from .memory import peak_bytes
from .simulate import Hardware, Method, Ran, choose_method, hardware_costs, hardware_memory, run_through

_BUSY = tuple(
    int(kind)
    for kind in (
        ActionKind.FORWARD,
        ActionKind.BACKWARD,
        ActionKind.BACKWARD_INPUT,
        ActionKind.BACKWARD_WEIGHT,
        ActionKind.STEP,
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Headline numbers of one run; the words of `loraplex simulate --json`."""

    makespan_ms: float
    bubble_ratio: float
    tokens_per_s: float
    peak_memory_bytes: int | None
    fits_in_memory: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A plan with what every replay of it needs."""

    plan: Plan
    loads: Loads
    num_tokens: int

    @classmethod
    def of(cls, plan: Plan) -> "Prepared":
        """Made once, used for many replays."""
        loads = Loads.of(plan.microbatches, jobs=plan.jobs, pad_multiple=plan.pad_multiple)
        return cls(plan=plan, loads=loads, num_tokens=plan.num_tokens())


def outcome_of(graph: ProgramGraph, prepared: Prepared, hardware: Hardware, *, method: Method = "auto") -> Outcome:
    """Replay the Program of `graph`, with the cluster's restart if it has one, and keep the headline numbers."""
    plan, restart = prepared.plan, hardware.cluster.restart
    costs = hardware_costs(graph.program, plan, hardware, graph=graph, loads=prepared.loads)
    runs = run_through(costs, plan, hardware, method=choose_method(hardware.cluster, method))
    makespan_ms, cuts_ms = runs[-1].completion.makespan_ms(), [inf]
    if restart is not None and len(runs) > 1:
        makespan_ms, cuts_ms = makespan_ms + restart.at_ms + restart.for_ms, [restart.at_ms, inf]
    cut = list(zip(runs, cuts_ms, strict=True))
    busy_ms = sum(_busy_ms(ran, until_ms=until_ms) for ran, until_ms in cut)
    peaks = [peak for ran, until_ms in cut for peak in _peaks(ran, prepared, hardware, until_ms=until_ms)]
    peak = max(peaks, default=None)
    capacity = hardware.cluster.memory_bytes or hardware.profile.memory.capacity_bytes
    return Outcome(
        makespan_ms=makespan_ms,
        bubble_ratio=1.0 - busy_ms / (len(graph.program.workers) * makespan_ms) if makespan_ms else 0.0,
        tokens_per_s=prepared.num_tokens / makespan_ms * 1e3 if makespan_ms else 0.0,
        peak_memory_bytes=peak,
        fits_in_memory=peak is None or peak <= capacity,
    )


def _busy_ms(ran: Ran, *, until_ms: float) -> float:
    # What a failure cuts off was busy until then, and is done again.
    busy = np.isin(ran.costs.graph.kind, _BUSY)
    ends = np.minimum(ran.completion.end_ms[busy], until_ms)
    return float(np.maximum(ends - ran.completion.start_ms[busy], 0.0).sum())


def _peaks(ran: Ran, prepared: Prepared, hardware: Hardware, *, until_ms: float) -> tuple[int, ...]:
    curves = hardware_memory(
        ran.costs.graph, ran.completion, hardware, loads=prepared.loads, num_adapters=len(prepared.plan.jobs)
    )
    return peak_bytes(curves, until_ms=until_ms)
