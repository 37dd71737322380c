"""simulate: one Program under one CostProfile on one Cluster, from start to Timeline."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..planner.costing import ProgramCosts, program_costs, sends
from ..planner.graph import ProgramGraph, program_graph
from ..planner.loads import Loads
from ..planner.plan import Plan
from ..planner.program import Program
from ..planner.recurrence import Completion, completion_times
from ..planner.resume import program_after
from ..traces.costs import CostProfile, Kernels, RecomputeMode
from ..traces.steady import when_busy
from ..traces.timeline import Timeline
from .cluster import Cluster
from .contention import message_channels
from .errors import SimulationError
from .memory import Curve, OutOfMemory, first_misfit, memory_counters, memory_curves, tracks_memory
from .replay import replay
from .restart import joined, last_checkpoint
from .to_timeline import to_timeline

Method = Literal["simpy", "recurrence", "auto"]
METHODS: tuple[Method, ...] = ("simpy", "recurrence", "auto")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a Program runs on, and how its model is laid out there."""

    profile: CostProfile
    cluster: Cluster = field(default_factory=Cluster)
    kernels: Kernels | None = None
    """How target linears are computed; None: the fastest the profile has."""
    layers_per_stage: tuple[int, ...] | None = None
    """Layers of each model part; None: as even as possible."""
    recompute: RecomputeMode = "none"
    """Which activations are computed again in the backward instead of kept."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Simulation:
    """One simulated run."""

    method: Method
    timeline: Timeline
    peak_memory_bytes: tuple[int, ...]
    """Per worker, replica after replica; empty where the profile knows no memory."""
    misfit: OutOfMemory | None
    """Where it would not fit into device memory; None where it fits."""

    def makespan_ms(self) -> float:
        """From the first start to the last end."""
        return self.timeline.makespan_ms()


def simulate(program: Program, plan: Plan, hardware: Hardware, *, method: Method = "auto") -> Simulation:
    """Replay `program`, built from `plan`.

    SimPy is the reference; the recurrence is faster and exact except under contention and pauses, where "auto" takes
    SimPy. Raises PlanError, TraceError or SimulationError naming the value, the rule and the mend.
    """
    costs = hardware_costs(program, plan, hardware)
    chosen = choose_method(hardware.cluster, method)
    first, *after = run_through(costs, plan, hardware, method=chosen)
    timeline = _timeline(first, plan, hardware)
    if hardware.cluster.restart is not None and after:
        timeline = joined(timeline, _timeline(after[0], plan, hardware), hardware.cluster.restart)
    capacity = hardware.cluster.memory_bytes or hardware.profile.memory.capacity_bytes
    return Simulation(
        method=chosen,
        timeline=timeline,
        peak_memory_bytes=tuple(int(peak) for peak in timeline.counters.groupby(["replica", "stage"])["bytes"].max()),
        misfit=first_misfit(timeline.counters, capacity_bytes=capacity),
    )


def simulated_makespan_ms(program: Program, plan: Plan, hardware: Hardware, *, method: Method = "auto") -> float:
    """Only the makespan, without spans, memory or restart: for sweeps."""
    costs = hardware_costs(program, plan, hardware)
    return run_once(costs, hardware, method=choose_method(hardware.cluster, method)).makespan_ms()


def choose_method(cluster: Cluster, method: Method) -> Method:
    """The method that will run. Raises SimulationError where the recurrence is asked for what it cannot tell."""
    if method not in METHODS:
        raise SimulationError(f"method '{method}' is unknown; choose one of {', '.join(METHODS)}")
    if method == "recurrence" and cluster.needs_simpy():
        raise SimulationError(
            f"method 'recurrence' knows neither contention nor pauses, which cluster '{cluster.name}' has; "
            "choose simpy or auto"
        )
    if method == "auto":
        return "simpy" if cluster.needs_simpy() else "recurrence"
    return method


def hardware_costs(
    program: Program,
    plan: Plan,
    hardware: Hardware,
    *,
    run: int = 0,
    graph: ProgramGraph | None = None,
    loads: Loads | None = None,
) -> ProgramCosts:
    """Costs of every action on this hardware, slow GPUs and jitter included; `graph` and `loads` if known.

    At the clock of GPUs that rest as much as stages do in this program.
    """
    graph = graph or program_graph(program)
    loads = loads or Loads.of(plan.microbatches, jobs=plan.jobs, pad_multiple=plan.pad_multiple)
    costs = _profiled(program, plan, hardware, hardware.profile, graph=graph, loads=loads)
    settled = when_busy(hardware.profile, _busy_share(costs, hardware.profile))
    if settled is not hardware.profile:
        costs = _profiled(program, plan, hardware, settled, graph=graph, loads=loads)
    return hardware.cluster.disturbed(costs, run=run)


def _profiled(
    program: Program, plan: Plan, hardware: Hardware, profile: CostProfile, *, graph: ProgramGraph, loads: Loads
) -> ProgramCosts:
    cluster = hardware.cluster
    return program_costs(
        program,
        plan,
        profile,
        kernels=hardware.kernels,
        layers_per_stage=hardware.layers_per_stage,
        recompute=hardware.recompute,
        links=cluster.links(num_stages=program.num_stages, num_replicas=program.num_replicas, profiled=profile.link),
        replica_link=cluster.replica_link(
            num_stages=program.num_stages, num_replicas=program.num_replicas, profiled=profile.link
        ),
        graph=graph,
        loads=loads,
    )


def _busy_share(costs: ProgramCosts, profile: CostProfile) -> float:
    # Mean over workers. One that nobody waits for never rests, and most profiles have one clock.
    num_workers = len(costs.graph.program.workers)
    if num_workers == 1 or profile.steady_forward_factor is profile.steady_backward_factor is None:
        return 1.0
    makespan_ms = completion_times(costs).makespan_ms()
    return float(costs.duration_ms.sum()) / (num_workers * makespan_ms) if makespan_ms else 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ran:
    """A Program's costs and when its actions ran, counted from its own begin."""

    costs: ProgramCosts
    completion: Completion


def run_through(costs: ProgramCosts, plan: Plan, hardware: Hardware, *, method: Method) -> tuple[Ran, ...]:
    """The run, and, where it dies before its end, the one that goes on from its last checkpoint after the restart."""
    first = Ran(costs=costs, completion=run_once(costs, hardware, method=method))
    restart = hardware.cluster.restart
    if restart is None or restart.at_ms >= first.completion.makespan_ms():
        return (first,)
    slot = last_checkpoint(costs.graph, first.completion, restart)
    again = hardware_costs(program_after(costs.graph.program, plan, slot=slot), plan, hardware, run=1)
    begin_ms = restart.at_ms + restart.for_ms
    return first, Ran(costs=again, completion=run_once(again, hardware, method=method, begin_ms=begin_ms))


def run_once(costs: ProgramCosts, hardware: Hardware, *, method: Method, begin_ms: float = 0.0) -> Completion:
    """Start and end of every action, counted from the run's begin, which lies at `begin_ms` of the pauses' clock."""
    if method == "recurrence":
        return completion_times(costs)
    cluster, program = hardware.cluster, costs.graph.program
    links = cluster.links(
        num_stages=program.num_stages, num_replicas=program.num_replicas, profiled=hardware.profile.link
    )
    return replay(
        costs,
        channels=message_channels(cluster, costs.graph, links),
        pauses=cluster.paused(costs.graph, begin_ms=begin_ms),
    )


def _timeline(ran: Ran, plan: Plan, hardware: Hardware) -> Timeline:
    costs, completion = ran.costs, ran.completion
    graph, profile = costs.graph, hardware.profile
    loads = Loads.of(plan.microbatches, jobs=plan.jobs, pad_multiple=plan.pad_multiple)
    curves = hardware_memory(graph, completion, hardware, loads=loads, num_adapters=len(plan.jobs))
    return to_timeline(
        costs,
        completion,
        origin=f"{profile.name} ({profile.origin})",
        message_bytes=_message_bytes(graph, loads, profile),
        counters=memory_counters(curves, num_stages=graph.program.num_stages),
    )


def hardware_memory(
    graph: ProgramGraph, completion: Completion, hardware: Hardware, *, loads: Loads, num_adapters: int
) -> tuple[Curve, ...]:
    """What every worker holds over time; empty where the profile knows no memory."""
    if not tracks_memory(hardware.profile.memory):
        return ()
    parts = hardware.profile.stages(
        num_stages=graph.program.num_stages * graph.program.num_chunks,
        kernels=hardware.kernels,
        layers_per_stage=hardware.layers_per_stage,
        recompute=hardware.recompute,
    )
    return memory_curves(
        graph,
        completion,
        memory=hardware.profile.memory,
        parts=parts,
        loads=loads,
        num_adapters=num_adapters,
        recompute=hardware.recompute,
    )


def _message_bytes(graph: ProgramGraph, loads: Loads, profile: CostProfile) -> NDArray[np.int64]:
    sending, _ = sends(graph)
    moved = np.zeros(graph.num_actions(), dtype=np.int64)
    moved[sending] = np.rint(loads.tokens[graph.microbatch[sending]] * profile.link.bytes_per_token).astype(np.int64)
    return moved
