"""The few numbers of a run that a sweep keeps, without spans: the fast way to what analysis takes from a Timeline."""

from dataclasses import dataclass

import numpy as np

from ..planner.costing import ProgramCosts
from ..planner.graph import ProgramGraph
from ..planner.loads import Loads
from ..planner.plan import Plan
from ..planner.program import ActionKind
from ..planner.recurrence import Completion
from .errors import SimulationError
from .memory import memory_counters, peak_bytes, tracks_memory
from .simulate import Hardware, Method, choose_method, hardware_costs, model_parts, run_once

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


def outcome_of(graph: ProgramGraph, plan: Plan, hardware: Hardware, *, method: Method = "auto") -> Outcome:
    """Replay the Program of `graph` and keep the headline numbers. Raises SimulationError if the cluster restarts."""
    if hardware.cluster.restart is not None:
        raise SimulationError("cluster.restart is beyond a sweep; ask loraplex simulate about single runs that restart")
    program = graph.program
    costs = hardware_costs(program, plan, hardware, graph=graph)
    completion = run_once(costs, hardware, method=choose_method(hardware.cluster, method))
    makespan_ms = completion.makespan_ms()
    busy_ms = float(costs.duration_ms[np.isin(graph.kind, _BUSY)].sum())
    peak = _peak_bytes(costs, completion, plan, hardware)
    capacity = hardware.cluster.memory_bytes or hardware.profile.memory.capacity_bytes
    return Outcome(
        makespan_ms=makespan_ms,
        bubble_ratio=1.0 - busy_ms / (len(program.workers) * makespan_ms) if makespan_ms else 0.0,
        tokens_per_s=plan.num_tokens() / makespan_ms * 1e3 if makespan_ms else 0.0,
        peak_memory_bytes=peak,
        fits_in_memory=peak is None or peak <= capacity,
    )


def _peak_bytes(costs: ProgramCosts, completion: Completion, plan: Plan, hardware: Hardware) -> int | None:
    if not tracks_memory(hardware.profile.memory):
        return None
    program = costs.graph.program
    counters = memory_counters(
        costs.graph,
        completion,
        memory=hardware.profile.memory,
        parts=model_parts(program, hardware),
        loads=Loads.of(plan.microbatches, pad_multiple=plan.pad_multiple),
        num_adapters=len(plan.jobs),
        recompute=hardware.recompute,
    )
    return max(peak_bytes(counters, num_stages=program.num_stages, num_replicas=program.num_replicas), default=None)
