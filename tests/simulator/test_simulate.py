"""From a Program to a Timeline: whole spans, methods, restarts."""

from dataclasses import replace

import pytest
from hypothesis import given, settings

from loraplex.analysis.metrics import summarize
from loraplex.planner.build_program import build_program
from loraplex.planner.graph import program_graph
from loraplex.planner.plan import Plan
from loraplex.simulator.cluster import Cluster, Pause, Restart
from loraplex.simulator.errors import SimulationError
from loraplex.simulator.outcome import Prepared, outcome_of
from loraplex.simulator.simulate import Hardware, simulate, simulated_makespan_ms
from loraplex.tests.random_plans import even_plan, plans
from loraplex.traces.costs import LinkCosts, uniform_profile
from loraplex.traces.profiles import load_profile

Row = tuple[int, str, str, float, float, int, str]


def rows(hardware: Hardware, plan: Plan) -> list[Row]:
    """(stage, kind, action, start, end, bytes, cause) of every span, in order."""
    timeline = simulate(build_program(plan), plan, hardware).timeline.check()
    columns = ["stage", "kind", "action", "start_ms", "end_ms", "bytes", "cause"]
    return list(timeline.frame[columns].itertuples(index=False, name=None))


def test_a_timeline_holds_compute_transfers_and_waits() -> None:
    profile = replace(
        uniform_profile(forward_ms=1, backward_ms=2, num_stages=2),
        link=LinkCosts(latency_ms=0.25, bytes_per_ms=100.0, bytes_per_token=0.25),
    )
    assert rows(Hardware(profile=profile), even_plan(2, 1)) == [
        (0, "compute", "0F0", 0.0, 1.0, 0, ""),
        (0, "transfer", "0F0", 1.0, 1.5, 25, ""),
        (0, "wait", "0B0", 1.0, 5.0, 0, "warmup"),
        (0, "compute", "0B0", 5.0, 7.0, 0, ""),
        (0, "compute", "0S0.0", 7.0, 7.0, 0, ""),
        (0, "wait", "0S0.0", 7.0, 7.25, 0, "cooldown"),
        (1, "wait", "1F0", 0.0, 1.5, 0, "warmup"),
        (1, "compute", "1F0", 1.5, 2.5, 0, ""),
        (1, "compute", "1B0", 2.5, 4.5, 0, ""),
        (1, "transfer", "1B0", 4.5, 5.0, 25, ""),
        (1, "wait", "1S0.0", 4.5, 7.25, 0, "cooldown"),
        (1, "compute", "1S0.0", 7.25, 7.25, 0, ""),
    ]


@pytest.mark.parametrize(
    ("num_stages", "num_microbatches", "makespan_ms"),
    [
        (1, 3, 9.0),  # never rests
        (2, 3, 12.0 * 0.9),  # three quarters of the time at work: half way between both clocks
        (2, 1, 6.0 * 0.8),  # half of the time: the clock of the rounds
        (4, 1, 12.0 * 0.8),  # a quarter: no higher a clock than that
    ],
)
def test_stages_that_rest_have_a_higher_clock(num_stages: int, num_microbatches: int, makespan_ms: float) -> None:
    profile = replace(
        uniform_profile(forward_ms=1, backward_ms=2, num_stages=num_stages),
        steady_forward_factor=1.25,
        steady_backward_factor=1.25,
    )
    plan = even_plan(num_stages, num_microbatches)
    program, hardware = build_program(plan), Hardware(profile=profile)
    assert simulate(program, plan, hardware).makespan_ms() == pytest.approx(makespan_ms)
    assert simulated_makespan_ms(program, plan, hardware) == pytest.approx(makespan_ms)


@settings(max_examples=60)
@given(plan=plans(max_stages=5, max_replicas=2))
def test_simpy_and_recurrence_give_the_same_timeline(plan: Plan) -> None:
    hardware = Hardware(
        profile=uniform_profile(forward_ms=3, backward_ms=5, num_stages=plan.num_stages, latency_ms=0.5)
    )
    program = build_program(plan)
    simpy, recurrence = (
        simulate(program, plan, hardware, method=method).timeline for method in ("simpy", "recurrence")
    )
    assert simpy.frame.equals(recurrence.frame)


@settings(max_examples=60)
@given(plan=plans(max_stages=5, max_replicas=2))
def test_the_fast_numbers_of_a_sweep_are_those_of_the_timeline(plan: Plan) -> None:
    hardware = Hardware(profile=load_profile("llama-70b-h100-published"), cluster=Cluster(jitter=0.1, seed=3))
    program = build_program(plan, schedule="1f1b-slots")
    found = simulate(program, plan, hardware)
    summary = summarize(found.timeline, plan=plan)
    outcome = outcome_of(program_graph(program), Prepared.of(plan), hardware)
    assert outcome.makespan_ms == pytest.approx(summary.makespan_ms)
    assert outcome.bubble_ratio == pytest.approx(summary.bubble_ratio, abs=1e-12)
    assert outcome.tokens_per_s == pytest.approx(summary.tokens_per_s)
    assert outcome.peak_memory_bytes == summary.peak_memory_bytes
    assert outcome.fits_in_memory is (found.misfit is None)
    assert simulated_makespan_ms(program, plan, hardware) == pytest.approx(found.makespan_ms())


def test_auto_takes_simpy_only_where_the_recurrence_cannot_tell() -> None:
    plan = even_plan(2, 2)
    profile = uniform_profile(forward_ms=1, backward_ms=2, num_stages=2)
    program = build_program(plan)
    paused = Cluster(pauses=(Pause(stage=0, at_ms=1.0, for_ms=1.0),))
    assert simulate(program, plan, Hardware(profile=profile)).method == "recurrence"
    assert simulate(program, plan, Hardware(profile=profile, cluster=paused)).method == "simpy"
    with pytest.raises(SimulationError, match="knows neither contention nor pauses"):
        simulate(program, plan, Hardware(profile=profile, cluster=paused), method="recurrence")


def test_a_restart_repeats_what_the_last_checkpoint_had_not() -> None:
    # One stage, forward and backward of 1 + 2 ms; it dies at 10.5 in microbatch 3; checkpoints after every second one.
    plan = even_plan(1, 5)
    cluster = Cluster(restart=Restart(at_ms=10.5, for_ms=4.0, checkpoint_every=2))
    profile = uniform_profile(forward_ms=1, backward_ms=2, num_stages=1)
    found = rows(Hardware(profile=profile, cluster=cluster), plan)
    assert [row[1:5] + row[6:] for row in found if row[3] >= 9.0] == [
        ("compute", "0F3", 9.0, 10.0, ""),
        ("compute", "0B3", 10.0, 10.5, ""),
        ("wait", "", 10.5, 14.5, "restart"),
        ("compute", "0F2", 14.5, 15.5, ""),
        ("compute", "0B2", 15.5, 17.5, ""),
        ("compute", "0F3", 17.5, 18.5, ""),
        ("compute", "0B3", 18.5, 20.5, ""),
        ("compute", "0F4", 20.5, 21.5, ""),
        ("compute", "0B4", 21.5, 23.5, ""),
        ("compute", "0S0.0", 23.5, 23.5, ""),
    ]


@pytest.mark.parametrize(("checkpoint_every", "makespan_ms"), [(1, 20.5), (2, 23.5), (4, 29.5), (100, 29.5)])
def test_the_rarer_the_checkpoints_the_more_is_lost(checkpoint_every: int, makespan_ms: float) -> None:
    plan = even_plan(1, 5)
    cluster = Cluster(restart=Restart(at_ms=10.5, for_ms=4.0, checkpoint_every=checkpoint_every))
    profile = uniform_profile(forward_ms=1, backward_ms=2, num_stages=1)
    found = simulate(build_program(plan), plan, Hardware(profile=profile, cluster=cluster))
    assert found.makespan_ms() == makespan_ms


def test_a_failure_after_the_end_changes_nothing() -> None:
    plan = even_plan(2, 2)
    profile = uniform_profile(forward_ms=1, backward_ms=2, num_stages=2)
    late = Cluster(restart=Restart(at_ms=1e6, for_ms=4.0, checkpoint_every=1))
    found, calm = (
        simulate(build_program(plan), plan, Hardware(profile=profile, cluster=cluster)) for cluster in (late, Cluster())
    )
    assert found.timeline.frame.equals(calm.timeline.frame)
