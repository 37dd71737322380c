"""What graphs reserve of a stage's memory, beside microbatches that are not replayed."""

from dataclasses import replace

import pytest

from loraplex.planner.build_program import build_program
from loraplex.planner.graph import program_graph
from loraplex.planner.graph_pools import graph_pools
from loraplex.planner.jobs import job_from_lengths
from loraplex.planner.loads import Loads
from loraplex.planner.plan import Plan, microbatch
from loraplex.planner.stage_memory import peak_memory
from loraplex.traces.costs import MemoryCosts, RecomputeMode

MEMORY = MemoryCosts(
    activation_bytes_per_token_layer=10.0,
    selective_bytes_per_token_layer=7.0,
    boundary_bytes_per_token=2.0,
    stage_bytes_per_token=1.0,
    workspace_bytes_per_token=4.0,
    logit_bytes_per_target=3.0,
    head_workspace_bytes=90.0,
    graph_tokens=300,
)


def plan_of(*lengths: int, num_stages: int = 1) -> Plan:
    """A microbatch for each sample, none of which waits for another."""
    job = job_from_lengths(adapter=0, name="a", lengths=lengths, global_batch_size=len(lengths))
    (batch,) = job.global_batches
    return Plan(
        jobs=(job,),
        num_stages=num_stages,
        microbatch_tokens=max(lengths),
        microbatches=tuple(microbatch([sample]) for sample in batch),
    )


def pools(plan: Plan, *, memory: MemoryCosts = MEMORY, recompute: RecomputeMode = "none") -> list[float]:
    graph = program_graph(build_program(plan))
    loads = Loads.of(plan.microbatches, jobs=plan.jobs)
    layers = [2] * plan.num_stages
    found = graph_pools(graph, memory=memory, layers=layers, loads=loads, recompute=recompute)
    return [float(one) for one in found]


@pytest.mark.parametrize(("recompute", "kept", "again"), [("none", 10, 0), ("selective", 7, 3), ("full", 2, 8)])
def test_a_lane_holds_the_largest_replayed_microbatch(recompute: RecomputeMode, kept: int, again: int) -> None:
    # Of 130 tokens, filled up to 256: two layers and an output, and in passing a layer's workspace and what it makes
    # again. One is in flight at a time.
    lane = 256 * (2 * kept + 1 + 4 + again)
    assert pools(plan_of(130, 100, 5), recompute=recompute) == [lane]
    # Larger ones are not replayed, and need none.
    assert pools(plan_of(130, 301, 5), recompute=recompute) == [lane]
    assert pools(plan_of(301, 302)) == [0.0]
    assert pools(plan_of(130), memory=replace(MEMORY, graph_tokens=0)) == [0.0]


def test_there_are_as_many_lanes_as_replayed_microbatches_in_flight() -> None:
    lane = 128 * (2 * 10 + 1 + 4)
    assert pools(plan_of(*[100] * 6, num_stages=3)) == [3 * lane, 2 * lane, lane]
    assert pools(plan_of(100, num_stages=3)) == [lane] * 3
    # Behind two large ones the first stage has a single small one in flight, and so has every other.
    assert pools(plan_of(400, 400, 100, 400, 400, 100, num_stages=3)) == [lane] * 3


def test_the_peak_is_what_is_in_flight_and_beside_it_all_lanes() -> None:
    plan = plan_of(400, 100, 400, 100)
    graph = program_graph(build_program(plan))
    loads = Loads.of(plan.microbatches, jobs=plan.jobs)
    (with_graphs,), (without,) = (
        peak_memory(graph, memory=memory, layers=[2], loads=loads, num_adapters=1)
        for memory in (MEMORY, replace(MEMORY, graph_tokens=0))
    )
    # At its peak a large one is in flight.
    assert with_graphs == replace(without, graphs_bytes=128 * (2 * 10 + 1 + 4))
    assert without.activations_bytes == 400 * (2 * 10 + 1)
    assert with_graphs.peak_bytes() == without.peak_bytes() + with_graphs.graphs_bytes
