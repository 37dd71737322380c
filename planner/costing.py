"""What every action of a Program costs: a Plan's loads under a CostProfile. Simulator and recurrence share it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..traces.costs import CostProfile, Kernels, LinkCosts, RecomputeMode, StageCost
from .errors import PlanError
from .graph import ProgramGraph, program_graph
from .loads import Loads
from .plan import Plan
from .program import ActionKind, Program

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProgramCosts:
    """Costs of one Program, in arrays over its actions numbered through (`graph`)."""

    graph: ProgramGraph
    duration_ms: Float
    transfer_ms: Float
    """From the end of an action until what it sends has arrived; 0 where it sends nothing."""
    extra_ms: Float
    """Delay of each further wait of the graph: a short message's latency over its hops."""
    blocking: bool = False
    """Whether a worker stands still while what it sends is under way."""


def program_costs(
    program: Program,
    plan: Plan,
    profile: CostProfile,
    *,
    kernels: Kernels | None = None,
    layers_per_stage: Sequence[int] | None = None,
    recompute: RecomputeMode = "none",
    links: Sequence[LinkCosts] | None = None,
    replica_link: LinkCosts | None = None,
    graph: ProgramGraph | None = None,
    loads: Loads | None = None,
) -> ProgramCosts:
    """Costs of running `program`, which was built from `plan`, on the devices of `profile`.

    `links[w]` joins worker w with the next stage of its replica, the last stage with the first (which only chunks use);
    default: the profile's link everywhere. `layers_per_stage` counts per model part: chunks count as stages.
    `replica_link` carries gradient reduction (default: the profile's link). `graph` of the program and `loads` of the
    plan spare making them again.
    Raises PlanError where program and plan differ, TraceError where the profile cannot be cut so.
    """
    graph = graph or program_graph(program)
    if int(graph.microbatch.max(initial=-1)) >= len(plan.microbatches):
        raise PlanError(
            f"the program runs microbatch {int(graph.microbatch.max())}, but the plan has only "
            f"{len(plan.microbatches)}; build the program from this plan"
        )
    parts = profile.stages(
        num_stages=program.num_stages * program.num_chunks,
        kernels=kernels,
        layers_per_stage=layers_per_stage,
        recompute=recompute,
    )
    loads = loads or Loads.of(plan.microbatches, jobs=plan.jobs, pad_multiple=plan.pad_multiple)
    hops = _links(len(program.workers), profile.link, links)
    duration = _pass_ms(graph, loads, parts)
    steps = np.array([stage.step_ms for stage in parts]).reshape(program.num_chunks, -1).sum(axis=0)
    layers = np.array([stage.num_layers for stage in parts]).reshape(program.num_chunks, -1).sum(axis=0)
    is_step, is_reduce = graph.kind == int(ActionKind.STEP), graph.kind == int(ActionKind.REDUCE)
    duration[is_step] = steps[graph.stage()[is_step]]
    reduce_ms = _reduce_ms(profile, replica_link or profile.link, layers, num_replicas=program.num_replicas)
    duration[is_reduce] = reduce_ms[graph.stage()[is_reduce]]
    return ProgramCosts(
        graph=graph,
        duration_ms=duration,
        transfer_ms=_transfer_ms(graph, loads, hops),
        extra_ms=_extra_ms(graph, hops),
        blocking=not all(link.overlapped for link in hops),
    )


def _pass_ms(graph: ProgramGraph, loads: Loads, parts: Sequence[StageCost]) -> Float:
    forward = np.stack([loads.forward_ms(stage) for stage in parts])
    backward = np.stack([loads.backward_ms(stage) for stage in parts])
    evaluates = bool((graph.kind == int(ActionKind.EVALUATE)).any())
    # A graph is of a forward that has a backward.
    alone = np.stack([loads.forward_ms(stage.kernel_by_kernel()) for stage in parts]) if evaluates else forward
    weight = backward * np.array([[stage.weight_share] for stage in parts])
    by_kind = {
        ActionKind.FORWARD: forward,
        ActionKind.EVALUATE: alone,
        ActionKind.BACKWARD: backward,
        ActionKind.BACKWARD_INPUT: backward - weight,
        ActionKind.BACKWARD_WEIGHT: weight,
    }
    duration = np.zeros(graph.num_actions())
    for kind, table in by_kind.items():
        chosen = graph.kind == int(kind)
        duration[chosen] = table[graph.part[chosen], graph.microbatch[chosen]]
    return duration


def _links(num_workers: int, default: LinkCosts, links: Sequence[LinkCosts] | None) -> tuple[LinkCosts, ...]:
    if links is None:
        return (default,) * num_workers
    if len(links) != num_workers:
        raise PlanError(f"{len(links)} links were given; {num_workers} workers need one each, to their next stage")
    return tuple(links)


def sends(graph: ProgramGraph) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which actions send activations or gradients on, and over which link: that of the worker with the lower part."""
    program = graph.program
    stages, num_parts = program.num_stages, program.num_stages * program.num_chunks
    down = (graph.kind == int(ActionKind.FORWARD)) | (graph.kind == int(ActionKind.EVALUATE))
    up = (graph.kind == int(ActionKind.BACKWARD)) | (graph.kind == int(ActionKind.BACKWARD_INPUT))
    sending = ((down & (graph.part < num_parts - 1)) | (up & (graph.part > 0))) & (stages > 1)
    stage = graph.stage().astype(np.int64)
    link = graph.worker.astype(np.int64) + np.where(down, 0, (stage - 1) % stages - stage)
    return sending, link


def _transfer_ms(graph: ProgramGraph, loads: Loads, hops: Sequence[LinkCosts]) -> Float:
    sending, link = sends(graph)
    table = np.stack([hop.ms(loads.tokens) for hop in hops])
    transfer = np.zeros(graph.num_actions())
    transfer[sending] = table[link[sending], graph.microbatch[sending]]
    return transfer


def _extra_ms(graph: ProgramGraph, hops: Sequence[LinkCosts]) -> Float:
    # A short message passes every link on its way; links differ, so take the mean latency of a hop.
    latency = float(np.mean([hop.latency_ms for hop in hops]))
    return np.asarray(graph.extra_hops * latency, dtype=np.float64)


def _reduce_ms(profile: CostProfile, link: LinkCosts, layers: NDArray[np.int64], *, num_replicas: int) -> Float:
    # Ring all-reduce of one adapter's gradients: 2 (R - 1) rounds, each of an R-th of the bytes.
    rounds = 2 * (num_replicas - 1)
    part_bytes = profile.memory.adapter_gradient_bytes_per_layer * layers / max(num_replicas, 1)
    return np.asarray(rounds * (link.latency_ms + part_bytes / link.bytes_per_ms), dtype=np.float64)
