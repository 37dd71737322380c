"""The recurrence against an independent longest path, exact fractions and bounds; batched against one by one."""

from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex.planner import recurrence
from loraplex.planner.build_program import build_program
from loraplex.planner.costing import ProgramCosts, program_costs
from loraplex.planner.plan import Plan
from loraplex.planner.program import ActionKind, Program
from loraplex.planner.recurrence import batched_makespans_ms, completion_times, makespan_ms
from loraplex.tests.random_plans import even_plan, plans
from loraplex.traces.costs import CostProfile, CostTerms, LinkCosts, PassCosts, uniform_profile

LATENCY_MS = 0.07
SCHEDULES = ["1f1b-slots", "1f1b-greedy", "1f1b-wide", "1f1b-flush", "gpipe", "zb-h1", "interleaved-2"]


def uneven_profile(plan: Plan, program: Program, *, overlapped: bool = True) -> CostProfile:
    """Costs in which everything counts: tokens, squares, adapters, layers, steps, latency, bandwidth."""
    num_parts = plan.num_stages * program.num_chunks
    return CostProfile(
        name="uneven",
        origin="textbook",
        source="numbers chosen so that no two actions cost the same",
        num_layers=2 * num_parts - num_parts // 2,
        forward=PassCosts(linears={"fused": CostTerms(fixed_ms=0.3, per_token_ms=0.011, per_square_ms=0.0007)}),
        backward=PassCosts(linears={"fused": CostTerms(fixed_ms=0.2, per_token_ms=0.023, per_adapter_ms=0.05)}),
        weight_share=0.25,
        step_fixed_ms=0.21,
        link=LinkCosts(latency_ms=LATENCY_MS, bytes_per_ms=100.0, bytes_per_token=1.3, overlapped=overlapped),
    )


def longest_path_ms(program: Program, costs: ProgramCosts) -> float:
    """Makespan by brute force: every action's end as the longest way to it, each rule read off the Program anew."""
    graph = costs.graph
    stages, num_parts = program.num_stages, program.num_stages * program.num_chunks
    workers = [list(columns) for columns in program.workers]
    number = {
        (worker, place): int(graph.offsets[worker]) + place
        for worker, actions in enumerate(workers)
        for place in range(len(actions))
    }
    part_of = {key: workers[key[0]][key[1]].chunk * stages + key[0] % stages for key in number}
    passes = {
        (workers[worker][place].kind, part_of[worker, place], workers[worker][place].microbatch): (worker, place)
        for worker, place in number
    }

    def feeds(worker: int, place: int) -> list[tuple[int, int]]:
        action, part = workers[worker][place], part_of[worker, place]
        if action.kind == ActionKind.FORWARD and part > 0:
            return [passes[ActionKind.FORWARD, part - 1, action.microbatch]]
        if action.kind in (ActionKind.BACKWARD, ActionKind.BACKWARD_INPUT) and part < num_parts - 1:
            return [passes[action.kind, part + 1, action.microbatch]]
        if action.kind == ActionKind.STEP and worker % stages > 0:
            after = [at for at in range(place, len(workers[worker])) if workers[worker][at].kind != ActionKind.STEP]
            return feeds(worker, after[0]) if after else []
        return []

    split = any(action.kind == ActionKind.BACKWARD_WEIGHT for actions in workers for action in actions)
    alone = program.num_replicas == 1

    def last_before(worker: int, place: int, *kinds: ActionKind) -> int:
        return max((at for at in range(place) if workers[worker][at].kind in kinds), default=-1)

    def same(worker: int, kind: ActionKind, action: Any) -> int:
        batch = (kind, action.adapter, action.global_batch)
        return next(
            at for at, other in enumerate(workers[worker]) if (other.kind, other.adapter, other.global_batch) == batch
        )

    def short_messages(worker: int, place: int) -> list[tuple[tuple[int, int], int]]:
        """((worker, place), hops) of what an action awaits besides activations and gradients."""
        action, root, stage = workers[worker][place], worker - worker % stages, worker % stages
        found = []
        if action.kind == ActionKind.REDUCE:
            for other in range(stage, len(workers), stages):
                found.append(((other, same(other, ActionKind.REDUCE, action) - 1), 0))
            if stage < stages - 1:
                found.append(((worker + 1, same(worker + 1, ActionKind.REDUCE, action)), 1))
        if action.kind == ActionKind.STEP and stage == 0 and split and alone:
            for other in range(root + 1, root + stages):
                gradients = (ActionKind.BACKWARD, ActionKind.BACKWARD_WEIGHT)
                ready = last_before(other, same(other, ActionKind.STEP, action), *gradients)
                found.append(((other, ready), other - root))
        ends = [max((at for at, one in enumerate(line) if one.kind != ActionKind.STEP), default=-1) for line in workers]
        if action.kind == ActionKind.STEP and stage > 0 and place == ends[worker] + 1:
            found.append(((root, ends[root]), stage))
            if split and alone:
                found += [((other, ends[other]), other - root + stage) for other in range(root + 1, root + stages)]
        return [(key, hops) for key, hops in found if key[1] >= 0]

    @cache
    def end(worker: int, place: int) -> Any:
        action = number[worker, place]
        start = costs.duration_ms[action] * 0
        if place > 0:
            sent = costs.transfer_ms[action - 1] if costs.blocking else 0
            start = end(worker, place - 1) + sent
        for key in feeds(worker, place):
            start = max(start, end(*key) + costs.transfer_ms[number[key]])
        for key, hops in short_messages(worker, place):
            start = max(start, end(*key) + hops * LATENCY_MS)
        return start + costs.duration_ms[action]

    for worker, place in number:
        end(worker, place)
    return float(max((end(*key) for key in number), default=0.0))


@pytest.mark.parametrize("schedule", SCHEDULES)
@settings(max_examples=60)
@given(plan=plans(max_stages=5, max_replicas=2), overlapped=st.booleans())
def test_it_is_the_longest_path(schedule: str, plan: Plan, overlapped: bool) -> None:
    program = build_program(plan, schedule=schedule)
    costs = program_costs(program, plan, uneven_profile(plan, program, overlapped=overlapped))
    assert makespan_ms(costs) == pytest.approx(longest_path_ms(program, costs), rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@settings(max_examples=300)
@given(plan=plans(max_stages=8, max_replicas=3))
def test_bounds_are_never_violated(schedule: str, plan: Plan) -> None:
    program = build_program(plan, schedule=schedule)
    costs = program_costs(program, plan, uneven_profile(plan, program))
    found = completion_times(costs)
    graph = costs.graph
    busiest = max(
        costs.duration_ms[first:last].sum() for first, last in zip(graph.offsets, graph.offsets[1:], strict=False)
    )
    # No microbatch can go down and up faster than its own work allows; nothing takes longer than one after the other.
    chains = [
        costs.duration_ms[(graph.microbatch == index) & (graph.kind != int(ActionKind.BACKWARD_WEIGHT))].sum()
        for index in range(len(plan.microbatches))
    ]
    everything = costs.duration_ms.sum() + costs.transfer_ms.sum() + costs.extra_ms.sum()
    assert max(busiest, *chains) <= found.makespan_ms() * (1 + 1e-12)
    assert found.makespan_ms() <= everything * (1 + 1e-12)
    assert (found.end_ms == found.start_ms + costs.duration_ms).all()


@settings(max_examples=30)
@given(plan=plans(max_stages=5, max_replicas=2), overlapped=st.booleans())
def test_plain_python_and_batched_numpy_give_the_same(plan: Plan, overlapped: bool) -> None:
    program = build_program(plan, schedule="1f1b-slots")
    costs = program_costs(program, plan, uneven_profile(plan, program, overlapped=overlapped))
    factors = np.random.default_rng(len(plan.microbatches)).uniform(0.5, 2.0, (3, len(costs.duration_ms)))
    batch = batched_makespans_ms(costs, duration_ms=factors * costs.duration_ms)
    alone = [makespan_ms(replace(costs, duration_ms=factor * costs.duration_ms)) for factor in factors]
    assert batch.tolist() == pytest.approx(alone, rel=1e-12)


def test_without_numba_the_same_loop_runs_in_plain_python() -> None:
    plan = even_plan(4, 12, num_batches=2)
    program = build_program(plan, schedule="1f1b-greedy")
    costs = program_costs(program, plan, uneven_profile(plan, program))
    with_numba, plain = completion_times(costs), completion_times(costs, with_numba=False)
    assert plain.start_ms.tolist() == with_numba.start_ms.tolist()
    assert plain.end_ms.tolist() == with_numba.end_ms.tolist()


@pytest.mark.parametrize("num_microbatches", [1, 3, 8, 21])
@pytest.mark.parametrize("num_stages", [1, 2, 5, 8])
def test_closed_forms_hold_in_exact_fractions(num_stages: int, num_microbatches: int) -> None:
    forward, backward, weight = Fraction(1, 3), Fraction(5, 7), Fraction(1, 11)
    plan = even_plan(num_stages, num_microbatches)
    for schedule in ("1f1b-slots", "1f1b-flush", "gpipe"):
        assert exact_makespan(plan, schedule, forward=forward, backward=backward, weight=weight) == (
            num_microbatches + num_stages - 1
        ) * (forward + backward)
    if num_microbatches >= num_stages:
        bubble = (num_stages - 1) * (forward + (backward - weight) - weight)
        assert exact_makespan(plan, "zb-h1", forward=forward, backward=backward, weight=weight) == (
            num_microbatches * (forward + backward) + bubble
        )


def exact_makespan(plan: Plan, schedule: str, *, forward: Fraction, backward: Fraction, weight: Fraction) -> Fraction:
    """The recurrence's own loop, on fractions instead of floats."""
    program = build_program(plan, schedule=schedule)
    costs = program_costs(program, plan, uniform_profile(forward_ms=1, backward_ms=1, num_stages=plan.num_stages))
    graph = costs.graph
    cost = {
        ActionKind.FORWARD: forward,
        ActionKind.BACKWARD: backward,
        ActionKind.BACKWARD_INPUT: backward - weight,
        ActionKind.BACKWARD_WEIGHT: weight,
        ActionKind.STEP: Fraction(0),
    }
    durations = [cost[ActionKind(kind)] for kind in graph.kind.tolist()]
    nothing = [Fraction(0)] * max(graph.num_actions(), len(graph.extra_action))
    start, end = list(nothing), list(nothing)
    recurrence._pass(
        graph.run_first.tolist(),
        graph.run_end.tolist(),
        graph.run_worker.tolist(),
        [Fraction(0)] * (len(graph.offsets) - 1),
        graph.sender.tolist(),
        graph.has_extras.tolist(),
        graph.extra_first.tolist(),
        graph.extra_action.tolist(),
        nothing,
        durations,
        nothing,
        False,
        True,
        start,
        end,
    )
    return max(end)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    num_stages=st.integers(2, 6),
    latency=st.floats(0, 3),
)
def test_uneven_stages_settle_at_the_slowest_circle(seed: int, num_stages: int, latency: float) -> None:
    # Steady period of 1F1B: over all runs of stages s..t, (sum of F + B + 2 (t - s) c) / (t - s + 1) at its largest.
    draw = np.random.default_rng(seed)
    work = draw.integers(1, 20, (2, num_stages)).astype(float)
    period = max(
        (work[:, first : last + 1].sum() + 2 * (last - first) * latency) / (last - first + 1)
        for first in range(num_stages)
        for last in range(first, num_stages)
    )
    spans = []
    for count in (60, 120):
        plan = even_plan(num_stages, count)
        program = build_program(plan, schedule="1f1b-slots")
        costs = program_costs(
            program,
            plan,
            uniform_profile(forward_ms=1, backward_ms=1, num_stages=num_stages, latency_ms=latency),
        )
        graph = costs.graph
        durations = np.where(graph.kind == int(ActionKind.FORWARD), work[0][graph.stage()], work[1][graph.stage()])
        durations[graph.kind == int(ActionKind.STEP)] = 0.0
        spans.append(makespan_ms(replace(costs, duration_ms=durations)))
    assert spans[1] - spans[0] == pytest.approx(60 * period, rel=1e-9)


def test_a_program_without_actions_takes_no_time() -> None:
    plan = replace(even_plan(2, 1), microbatches=())
    program = build_program(plan)
    profile = uniform_profile(forward_ms=1, backward_ms=2, num_stages=2)
    assert makespan_ms(program_costs(program, plan, profile)) == 0.0
