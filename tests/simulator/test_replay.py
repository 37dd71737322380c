"""The SimPy replay: hand-computed runs, and equality with the recurrence wherever that can tell."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex.planner.build_program import build_program
from loraplex.planner.costing import ProgramCosts, program_costs
from loraplex.planner.plan import Plan
from loraplex.planner.recurrence import Completion, completion_times
from loraplex.simulator.replay import Channels, Pauses, replay, stretched
from loraplex.simulator.to_timeline import action_words
from loraplex.tests.random_plans import even_plan, plans
from loraplex.traces.costs import CostProfile, CostTerms, LinkCosts, PassCosts, uniform_profile

SCHEDULES = ["1f1b-slots", "1f1b-greedy", "1f1b-wide", "1f1b-flush", "gpipe", "zb-h1", "interleaved-2"]


def spans(costs: ProgramCosts, found: Completion, *, stage: int) -> list[tuple[str, float, float]]:
    """(action, start, end) of one stage, in order."""
    first, last = costs.graph.offsets[stage], costs.graph.offsets[stage + 1]
    words = action_words(costs.graph)[first:last].tolist()
    return list(zip(words, found.start_ms[first:last].tolist(), found.end_ms[first:last].tolist(), strict=True))


def even_costs(num_stages: int, num_microbatches: int, *, latency_ms: float = 0.0) -> ProgramCosts:
    plan = even_plan(num_stages, num_microbatches)
    profile = uniform_profile(forward_ms=1, backward_ms=2, num_stages=num_stages, latency_ms=latency_ms)
    return program_costs(build_program(plan, schedule="1f1b-slots"), plan, profile)


def test_two_stages_by_hand() -> None:
    costs = even_costs(2, 3)
    found = replay(costs)
    assert spans(costs, found, stage=0) == [
        ("0F0", 0, 1),
        ("0F1", 1, 2),
        ("0B0", 4, 6),
        ("0F2", 6, 7),
        ("0B1", 7, 9),
        ("0B2", 10, 12),
        ("0S0.0", 12, 12),
    ]
    assert spans(costs, found, stage=1) == [
        ("1F0", 1, 2),
        ("1B0", 2, 4),
        ("1F1", 4, 5),
        ("1B1", 5, 7),
        ("1F2", 7, 8),
        ("1B2", 8, 10),
        ("1S0.0", 12, 12),
    ]


def test_latency_delays_the_receiver_and_the_step_that_waits_for_the_norm() -> None:
    costs = even_costs(2, 1, latency_ms=0.5)
    found = replay(costs)
    assert spans(costs, found, stage=0) == [("0F0", 0, 1), ("0B0", 5, 7), ("0S0.0", 7, 7)]
    assert spans(costs, found, stage=1) == [("1F0", 1.5, 2.5), ("1B0", 2.5, 4.5), ("1S0.0", 7.5, 7.5)]


def test_a_blocking_link_holds_its_sender() -> None:
    costs = replace(even_costs(2, 2, latency_ms=0.5), blocking=True)
    assert spans(costs, replay(costs), stage=0)[:2] == [("0F0", 0, 1), ("0F1", 1.5, 2.5)]


def test_a_paused_worker_stands_still_and_works_on_after() -> None:
    costs = even_costs(2, 2)
    found = replay(costs, pauses=(((0.5, 3.5),), ((7.0, 8.0),)))
    assert spans(costs, found, stage=0)[:3] == [("0F0", 0, 4), ("0F1", 4, 5), ("0B0", 7, 9)]
    assert spans(costs, found, stage=1)[:4] == [("1F0", 4, 5), ("1B0", 5, 7), ("1F1", 8, 9), ("1B1", 9, 11)]


@pytest.mark.parametrize(
    ("start", "duration", "pauses", "spent"),
    [
        (0.0, 2.0, (), (0.0, 2.0)),
        (0.0, 2.0, ((5.0, 9.0),), (0.0, 2.0)),
        (0.0, 2.0, ((1.0, 4.0),), (0.0, 5.0)),
        (2.0, 2.0, ((1.0, 4.0),), (4.0, 6.0)),
        (0.0, 3.0, ((1.0, 2.0), (3.0, 4.0)), (0.0, 5.0)),
        (1.0, 3.0, ((1.0, 2.0), (2.0, 3.0)), (3.0, 6.0)),
        (5.0, 1.0, ((1.0, 2.0),), (5.0, 6.0)),
    ],
)
def test_work_is_stretched_over_pauses(
    start: float, duration: float, pauses: Pauses, spent: tuple[float, float]
) -> None:
    assert stretched(start, duration, pauses) == spent


def test_messages_on_one_way_go_one_after_the_other() -> None:
    # Two replicas send their first activations at 1 ms over one wire that takes 3 ms a message, 1 ms of it latency.
    plan = even_plan(2, 2, num_replicas=2)
    profile = uniform_profile(forward_ms=1, backward_ms=2, num_stages=2, latency_ms=3.0)
    costs = program_costs(build_program(plan), plan, profile)
    count = costs.graph.num_actions()
    nobody, one = np.full(count, -1), np.zeros(count, dtype=np.int64)
    alone = Channels(leaves=nobody, enters=nobody, latency_ms=np.full(count, 1.0))
    for channels, starts in (
        (None, [4.0, 4.0]),
        (alone, [4.0, 4.0]),
        (replace(alone, leaves=one), [4.0, 6.0]),
        (replace(alone, enters=one), [4.0, 6.0]),
        (replace(alone, leaves=one, enters=one), [4.0, 6.0]),
        (replace(alone, leaves=one, enters=one + costs.graph.worker), [4.0, 6.0]),
    ):
        found = replay(costs, channels=channels)
        assert [spans(costs, found, stage=worker)[0][1] for worker in (1, 3)] == starts


def uneven(plan: Plan, num_parts: int, *, overlapped: bool) -> CostProfile:
    return CostProfile(
        name="uneven",
        origin="textbook",
        source="numbers chosen so that no two actions cost the same",
        num_layers=2 * num_parts - num_parts // 2,
        forward=PassCosts(linears={"fused": CostTerms(fixed_ms=0.3, per_token_ms=0.011, per_square_ms=0.0007)}),
        backward=PassCosts(linears={"fused": CostTerms(fixed_ms=0.2, per_token_ms=0.023, per_adapter_ms=0.05)}),
        weight_share=0.25,
        step_fixed_ms=0.21,
        link=LinkCosts(latency_ms=0.07, bytes_per_ms=100.0, bytes_per_token=1.3, overlapped=overlapped),
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
@settings(max_examples=300)
@given(plan=plans(max_stages=8, max_replicas=3), overlapped=st.booleans())
def test_simpy_and_the_recurrence_agree_on_every_start_end_and_arrival(
    schedule: str, plan: Plan, overlapped: bool
) -> None:
    program = build_program(plan, schedule=schedule)
    costs = program_costs(program, plan, uneven(plan, plan.num_stages * program.num_chunks, overlapped=overlapped))
    simulated, computed = replay(costs), completion_times(costs)
    scale = max(computed.makespan_ms(), 1.0)
    for name in ("start_ms", "end_ms", "arrival_ms"):
        assert np.abs(getattr(simulated, name) - getattr(computed, name)).max(initial=0.0) <= 1e-9 * scale


@settings(max_examples=100)
@given(plan=plans(max_stages=5, max_replicas=2), seed=st.integers(0, 999))
def test_contention_and_pauses_only_ever_delay(plan: Plan, seed: int) -> None:
    program = build_program(plan, schedule="1f1b-slots")
    costs = program_costs(program, plan, uneven(plan, plan.num_stages, overlapped=True))
    draw = np.random.default_rng(seed)
    calm = replay(costs)
    leaves, enters = draw.integers(-1, 3, (2, costs.graph.num_actions()))
    channels = Channels(leaves=leaves, enters=enters, latency_ms=np.zeros(costs.graph.num_actions()))
    pauses = tuple(((float(at), float(at + 1.0)),) for at in draw.uniform(0, 5, len(program.workers)))
    assert (replay(costs, channels=channels).end_ms >= calm.end_ms - 1e-9).all()
    assert (replay(costs, pauses=pauses).end_ms >= calm.end_ms - 1e-9).all()
