"""What a stage needs at its peak, from the order of its actions alone."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex.planner.build_program import build_program
from loraplex.planner.graph import program_graph
from loraplex.planner.loads import Loads
from loraplex.planner.plan import Plan
from loraplex.planner.stage_memory import StageMemory, peak_memory
from loraplex.simulator.simulate import Hardware, simulate
from loraplex.tests.random_plans import even_plan, plans
from loraplex.traces.costs import MemoryCosts, RecomputeMode, uniform_profile
from loraplex.traces.memory_costs import RECOMPUTE_MODES

MEMORY = MemoryCosts(
    layer_weight_bytes=1000.0,
    embedding_weight_bytes=300.0,
    head_weight_bytes=400.0,
    adapter_bytes_per_layer=50.0,
    activation_bytes_per_token_layer=10.0,
    selective_bytes_per_token_layer=7.0,
    boundary_bytes_per_token=2.0,
    stage_bytes_per_token=1.0,
    workspace_bytes_per_token=4.0,
    logit_bytes_per_target=3.0,
    head_workspace_bytes=90.0,
    overhead_bytes=5000.0,
)


def at_peak(
    plan: Plan, *, memory: MemoryCosts = MEMORY, recompute: RecomputeMode = "none", schedule: str | None = None
) -> tuple[StageMemory, ...]:
    """Stages of one layer each."""
    graph = program_graph(build_program(plan, schedule=schedule))
    return peak_memory(
        graph,
        memory=memory,
        layers=[1] * plan.num_stages * graph.program.num_chunks,
        loads=Loads.of(plan.microbatches, jobs=plan.jobs, pad_multiple=plan.pad_multiple),
        num_adapters=len(plan.jobs),
        recompute=recompute,
    )


def test_every_part_by_arithmetic() -> None:
    # Two stages of a layer, four microbatches of 8 tokens: the first stage has two in flight, the last one.
    first, last = at_peak(even_plan(2, 4, num_tokens=8), recompute="selective")
    assert first == StageMemory(
        replica=0,
        stage=0,
        weights_bytes=1300.0,
        adapters_bytes=50.0 * 1,
        activations_bytes=2 * 8 * (7 + 1),
        logits_bytes=0.0,
        # One backward: its workspace, and what it computes again of a layer.
        passing_bytes=8 * (4 + 3),
        overhead_bytes=5000.0,
        num_in_flight=2,
    )
    assert (last.weights_bytes, last.activations_bytes, last.logits_bytes, last.passing_bytes, last.num_in_flight) == (
        1400.0,
        8 * (7 + 1),
        8 * 3.0,
        90.0,
        1,
    )
    assert first.peak_bytes() == 1300 + 50 + 128 + 56 + 5000


@settings(max_examples=60)
@given(
    plan=plans(max_stages=4, max_replicas=2),
    schedule=st.sampled_from(["1f1b-slots", "1f1b-greedy", "gpipe", "zb-h1", "interleaved-2"]),
    recompute=st.sampled_from(RECOMPUTE_MODES),
    graph_tokens=st.sampled_from([0, 20, 10**6]),
)
def test_the_peak_is_that_of_the_simulated_curve(
    plan: Plan, schedule: str, recompute: RecomputeMode, graph_tokens: int
) -> None:
    memory = replace(MEMORY, graph_tokens=graph_tokens)
    program = build_program(plan, schedule=schedule)
    parts = plan.num_stages * program.num_chunks
    profile = replace(uniform_profile(forward_ms=1, backward_ms=2, weight_ms=1, num_stages=parts), memory=memory)
    simulated = simulate(program, plan, Hardware(profile=profile, recompute=recompute)).peak_memory_bytes
    found = at_peak(plan, memory=memory, recompute=recompute, schedule=schedule)
    assert [round(stage.peak_bytes()) for stage in found] == list(simulated)
    assert [(stage.replica, stage.stage) for stage in found] == [
        divmod(worker, plan.num_stages) for worker in range(len(found))
    ]


def test_each_way_of_recomputing_needs_less_than_the_one_before() -> None:
    plan = even_plan(4, 12, num_tokens=64)
    needs = [at_peak(plan, recompute=mode)[0].peak_bytes() for mode in RECOMPUTE_MODES]
    assert needs == sorted(needs, reverse=True)
    assert len(set(needs)) == 3


def test_a_worker_without_work_holds_what_is_always_there() -> None:
    (stage,) = at_peak(replace(even_plan(1, 1), microbatches=(), jobs=()))
    assert (stage.peak_bytes(), stage.num_in_flight) == (1000.0 + 300 + 400 + 5000, 0)
