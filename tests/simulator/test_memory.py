"""Memory over time: theory's peaks, an independent count of what is held, and where it would not fit."""

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex.planner.build_program import build_program
from loraplex.planner.plan import Plan
from loraplex.planner.program import ActionKind, Program
from loraplex.simulator.simulate import Hardware, simulate
from loraplex.tests.random_plans import even_plan, plans
from loraplex.traces.costs import CostProfile, CostTerms, MemoryCosts, PassCosts


def profile_of(num_layers: int, memory: MemoryCosts, *, weight_share: float = 0.25) -> CostProfile:
    return CostProfile(
        name="memory",
        origin="textbook",
        source="one byte is one unit of what is counted",
        num_layers=num_layers,
        forward=PassCosts(linears={"fused": CostTerms(fixed_ms=1.0)}),
        backward=PassCosts(linears={"fused": CostTerms(fixed_ms=2.0)}),
        weight_share=weight_share,
        memory=memory,
    )


def peaks(plan: Plan, schedule: str) -> tuple[int, ...]:
    """Most microbatches in flight per stage: activations of one byte a token and layer, one token a microbatch."""
    program = build_program(plan, schedule=schedule)
    parts = plan.num_stages * program.num_chunks
    memory = MemoryCosts(activation_bytes_per_token_layer=1.0)
    return simulate(program, plan, Hardware(profile=profile_of(parts, memory))).peak_memory_bytes


@pytest.mark.parametrize("num_microbatches", [1, 3, 8, 16])
@pytest.mark.parametrize("num_stages", [1, 2, 4, 8])
def test_microbatches_in_flight_are_those_of_theory(num_stages: int, num_microbatches: int) -> None:
    plan = even_plan(num_stages, num_microbatches, num_tokens=1)
    stages = range(num_stages)
    assert peaks(plan, "gpipe") == (num_microbatches,) * num_stages
    for schedule in ("1f1b-slots", "1f1b-greedy", "1f1b-flush"):
        assert peaks(plan, schedule) == tuple(min(num_microbatches, num_stages - stage) for stage in stages)
    assert peaks(plan, "1f1b-wide") == tuple(min(num_microbatches, 2 * (num_stages - stage) - 1) for stage in stages)
    assert peaks(plan, "zb-h1") == (min(num_microbatches, num_stages),) * num_stages


@pytest.mark.parametrize("num_chunks", [2, 3])
@pytest.mark.parametrize("num_stages", [2, 4])
def test_interleaving_holds_more_chunks_in_flight(num_stages: int, num_chunks: int) -> None:
    plan = even_plan(num_stages, 4 * num_stages, num_tokens=1)
    assert peaks(plan, f"interleaved-{num_chunks}") == tuple(
        2 * (num_stages - stage - 1) + (num_chunks - 1) * num_stages + 1 for stage in range(num_stages)
    )


def test_a_curve_word_for_word() -> None:
    # One stage of two layers: 10 a layer and 5 for its adapter, embedding 100, head 200, overhead 1000. A microbatch of
    # 3 tokens keeps 2 x 7 x 3, and its logits 4 x 3, from the start of its forward to the end of its backward. Both
    # microbatches need as much, so the curve only moves at the ends.
    plan = even_plan(1, 2, num_tokens=3)
    memory = MemoryCosts(
        layer_weight_bytes=10.0,
        embedding_weight_bytes=100.0,
        head_weight_bytes=200.0,
        adapter_bytes_per_layer=5.0,
        activation_bytes_per_token_layer=7.0,
        logit_bytes_per_target=4.0,
        overhead_bytes=1000.0,
    )
    found = simulate(build_program(plan), plan, Hardware(profile=profile_of(2, memory)))
    still, held = 1000 + 100 + 200 + 2 * (10 + 5), 2 * 7 * 3 + 4 * 3
    assert list(found.timeline.counters.itertuples(index=False, name=None)) == [
        (0, 0, 0.0, still + held),
        (0, 0, 12.0, still),
    ]
    assert found.peak_memory_bytes == (still + held,)


def test_recomputation_keeps_inputs_only_and_one_layer_at_a_time() -> None:
    plan = even_plan(1, 1, num_tokens=3)
    memory = MemoryCosts(activation_bytes_per_token_layer=100.0, boundary_bytes_per_token=1.0)
    found = simulate(build_program(plan), plan, Hardware(profile=profile_of(2, memory), recompute="full"))
    # The layer's input is there already when the rest of its 100 bytes a token is computed again.
    assert list(found.timeline.counters.itertuples(index=False, name=None)) == [
        (0, 0, 0.0, 2 * 3),
        (0, 0, 2.0, 2 * 3 + 297),
        (0, 0, 8.0, 0),
    ]


def test_what_passes_need_for_themselves_goes_when_they_end() -> None:
    plan = even_plan(1, 1, num_tokens=3)
    memory = MemoryCosts(
        activation_bytes_per_token_layer=100.0,
        selective_bytes_per_token_layer=60.0,
        stage_bytes_per_token=1.0,
        workspace_bytes_per_token=10.0,
        logit_bytes_per_target=2.0,
        head_workspace_bytes=50.0,
    )
    found = simulate(build_program(plan), plan, Hardware(profile=profile_of(2, memory), recompute="selective"))
    kept = 3 * (2 * 60 + 1 + 2)
    # Forward: the head's 50 are more than the layers' 3 x 10. Backward: 3 x (10 + 40) for one layer are more still.
    assert list(found.timeline.counters.itertuples(index=False, name=None)) == [
        (0, 0, 0.0, kept + 50),
        (0, 0, 2.0, kept + 150),
        (0, 0, 6.0, 0),
    ]


def held_by_hand(program: Program, plan: Plan, found: dict[str, tuple[float, float]]) -> dict[int, float]:
    """Byte-milliseconds of activations per worker, each from the start of its forward to the end of what frees it."""
    total: dict[int, float] = defaultdict(float)
    for worker in range(len(program.workers)):
        opened: dict[tuple[int, int], float] = {}
        replica, stage = divmod(worker, program.num_stages)
        split = any(
            action.kind == ActionKind.BACKWARD_WEIGHT for action in program.actions(stage=stage, replica=replica)
        )
        frees = ActionKind.BACKWARD_WEIGHT if split else ActionKind.BACKWARD
        for action in program.actions(stage=stage, replica=replica):
            key = (action.microbatch, action.chunk)
            start, end = found[f"{worker}:{action.text(stage=stage, num_stages=program.num_stages)}"]
            if action.kind == ActionKind.FORWARD:
                opened[key] = start
            elif action.kind == frees:
                tokens = plan.microbatches[action.microbatch].padded_tokens(plan.pad_multiple)
                total[worker] += tokens * (end - opened.pop(key))
        assert not opened
    return total


@settings(max_examples=60)
@given(
    plan=plans(max_stages=5, max_replicas=2),
    schedule=st.sampled_from(["1f1b-slots", "gpipe", "zb-h1", "interleaved-2"]),
)
def test_the_curve_integrates_to_what_was_allocated(plan: Plan, schedule: str) -> None:
    program = build_program(plan, schedule=schedule)
    memory = MemoryCosts(activation_bytes_per_token_layer=1.0)
    hardware = Hardware(profile=profile_of(plan.num_stages * program.num_chunks, memory))
    timeline = simulate(program, plan, hardware).timeline
    compute = timeline.compute()
    workers = compute["replica"] * plan.num_stages + compute["stage"]
    spans = {
        f"{worker}:{action}": (start, end)
        for worker, action, start, end in zip(
            workers, compute["action"], compute["start_ms"], compute["end_ms"], strict=True
        )
    }
    expected = held_by_hand(program, plan, spans)
    counters = timeline.counters.assign(worker=lambda held: held["replica"] * plan.num_stages + held["stage"])
    for worker in range(len(program.workers)):
        curve = counters[counters["worker"] == worker]
        steps = curve["bytes"].to_numpy()[:-1] * (curve["ms"].to_numpy()[1:] - curve["ms"].to_numpy()[:-1])
        assert steps.sum() == pytest.approx(expected[worker])
        assert curve["bytes"].iloc[-1] == 0


def test_where_it_would_not_fit_is_named() -> None:
    plan = even_plan(2, 4, num_tokens=10)
    memory = MemoryCosts(activation_bytes_per_token_layer=1.0, overhead_bytes=5.0, capacity_bytes=20.0)
    program = build_program(plan)
    misfit = simulate(program, plan, Hardware(profile=profile_of(2, memory))).misfit
    assert misfit is not None
    assert (misfit.stage, misfit.ms, misfit.needed_bytes, misfit.capacity_bytes) == (0, 1.0, 25, 20)
    roomy = MemoryCosts(activation_bytes_per_token_layer=1.0, overhead_bytes=5.0, capacity_bytes=25.0)
    assert simulate(program, plan, Hardware(profile=profile_of(2, roomy))).misfit is None


def test_a_profile_without_memory_tracks_none() -> None:
    plan = even_plan(2, 2)
    found = simulate(build_program(plan), plan, Hardware(profile=profile_of(2, MemoryCosts(capacity_bytes=1.0))))
    assert found.timeline.counters.empty
    assert (found.peak_memory_bytes, found.misfit) == ((), None)
