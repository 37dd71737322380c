"""The few numbers of a run that a sweep keeps, without spans: the fast way to what analysis takes from a Timeline."""

from dataclasses import dataclass

import numpy as np

from ..planner.graph import ProgramGraph
from ..planner.loads import Loads
from ..planner.plan import Plan
from ..planner.program import ActionKind
from .errors import SimulationError
from .memory import peak_bytes
from .simulate import Hardware, Method, choose_method, hardware_costs, hardware_memory, run_once

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
    """Replay the Program of `graph` and keep the headline numbers. Raises SimulationError if the cluster restarts."""
    if hardware.cluster.restart is not None:
        raise SimulationError("cluster.restart is beyond a sweep; ask loraplex simulate about single runs that restart")
    program, plan = graph.program, prepared.plan
    costs = hardware_costs(program, plan, hardware, graph=graph, loads=prepared.loads)
    completion = run_once(costs, hardware, method=choose_method(hardware.cluster, method))
    makespan_ms = completion.makespan_ms()
    busy_ms = float(costs.duration_ms[np.isin(graph.kind, _BUSY)].sum())
    curves = hardware_memory(graph, completion, hardware, loads=prepared.loads, num_adapters=len(plan.jobs))
    peak = max(peak_bytes(curves), default=None)
    capacity = hardware.cluster.memory_bytes or hardware.profile.memory.capacity_bytes
    return Outcome(
        makespan_ms=makespan_ms,
        bubble_ratio=1.0 - busy_ms / (len(program.workers) * makespan_ms) if makespan_ms else 0.0,
        tokens_per_s=prepared.num_tokens / makespan_ms * 1e3 if makespan_ms else 0.0,
        peak_memory_bytes=peak,
        fits_in_memory=peak is None or peak <= capacity,
    )
