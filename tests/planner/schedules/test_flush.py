"""Schedules that flush: where the flushes lie, what is emitted between them, and the textbook's closed forms."""

import pytest
from hypothesis import given, settings

from loraplex.planner.build_program import build_program
from loraplex.planner.check_program import check_program
from loraplex.planner.costing import program_costs
from loraplex.planner.dependencies import slot_dependencies
from loraplex.planner.jobs import job_from_lengths
from loraplex.planner.plan import Plan, microbatch
from loraplex.planner.program import ActionKind
from loraplex.planner.recurrence import completion_times
from loraplex.planner.schedules.flush import segments
from loraplex.tests.random_plans import even_plan, plans
from loraplex.traces.costs import uniform_profile

FLUSHED = ["1f1b-flush", "gpipe", "zb-h1", "interleaved-2", "interleaved-3"]


def text(plan: Plan, schedule: str) -> list[str]:
    return build_program(plan, schedule=schedule).to_text().splitlines()


def pass_time_ms(
    plan: Plan, schedule: str, *, forward: float, backward: float, weight: float = 0.0, latency: float = 0.0
) -> float:
    """End of the last forward or backward; the Steps after it take no time, but their message down does."""
    program = build_program(plan, schedule=schedule)
    check_program(program, plan)
    profile = uniform_profile(
        forward_ms=forward,
        backward_ms=backward,
        weight_ms=weight,
        latency_ms=latency,
        num_stages=plan.num_stages,
        num_chunks=program.num_chunks,
    )
    costs = program_costs(program, plan, profile)
    return float(completion_times(costs).end_ms[costs.graph.kind != int(ActionKind.STEP)].max())


def test_a_flush_stands_where_all_batches_are_complete() -> None:
    assert segments(slot_dependencies(even_plan(2, 3, num_batches=2))) == (3, 3)


def test_a_flush_stands_before_a_read_even_if_another_batch_is_open() -> None:
    # Adapter 0 steps after every sample, adapter 1 after three, in the order 0 1 0 1 0 1.
    jobs = tuple(
        job_from_lengths(adapter=adapter, name=f"a{adapter}", lengths=[1, 1, 1], global_batch_size=size)
        for adapter, size in ((0, 1), (1, 3))
    )
    samples = [[sample for batch in job.global_batches for sample in batch] for job in jobs]
    stream = [microbatch([samples[adapter][number]]) for number in range(3) for adapter in range(2)]
    plan = Plan(jobs=jobs, num_stages=2, microbatch_tokens=1, microbatches=tuple(stream))
    # Alone in its segment, sample 0 of adapter 0 completes its batch; then 1 0, then the read of that 0 forces a cut.
    assert segments(slot_dependencies(plan)) == (1, 3, 2)


@given(plan=plans())
def test_segments_cover_the_stream_and_hold_no_read_of_their_own_steps(plan: Plan) -> None:
    found = slot_dependencies(plan)
    lengths = segments(found)
    assert sum(lengths) == plan.num_slots()
    begin = 0
    for length in lengths:
        assert max(found.waits_for[begin : begin + length]) < begin
        begin += length


def test_flushed_1f1b_drains_before_the_next_batch() -> None:
    assert text(even_plan(2, 3, num_batches=2), "1f1b-flush") == [
        "0F0 0F1 0B0 0F2 0B1 0B2 0S0.0 0F3 0F4 0B3 0F5 0B4 0B5 0S0.1",
        "1F0 1B0 1F1 1B1 1F2 1B2 1S0.0 1F3 1B3 1F4 1B4 1F5 1B5 1S0.1",
    ]


def test_gpipe_runs_all_forwards_first() -> None:
    assert text(even_plan(2, 2), "gpipe") == ["0F0 0F1 0B0 0B1 0S0.0", "1F0 1F1 1B0 1B1 1S0.0"]


def test_interleaved_goes_round_the_chunks() -> None:
    # Stage 0 holds model parts 0 and 2, stage 1 parts 1 and 3.
    assert text(even_plan(2, 4), "interleaved-2") == [
        "0F0 0F1 2F0 2F1 0F2 2B0 0F3 2B1 2F2 0B0 2F3 0B1 2B2 2B3 0B2 0B3 0S0.0",
        "1F0 1F1 3F0 3B0 3F1 3B1 1F2 1B0 1F3 1B1 3F2 3B2 3F3 3B3 1B2 1B3 1S0.0",
    ]


def test_zb_h1_puts_weight_gradients_where_the_drain_would_idle() -> None:
    assert text(even_plan(3, 4), "zb-h1") == [
        "0F0 0F1 0F2 0I0 0W0 0F3 0I1 0W1 0I2 0W2 0I3 0W3 0S0.0",
        "1F0 1F1 1I0 1F2 1I1 1W0 1F3 1I2 1W1 1I3 1W2 1W3 1S0.0",
        "2F0 2I0 2F1 2I1 2F2 2I2 2W0 2F3 2I3 2W1 2W2 2W3 2S0.0",
    ]


@pytest.mark.parametrize("schedule", FLUSHED)
@settings(max_examples=200)
@given(plan=plans(max_stages=8, max_replicas=3))
def test_every_program_passes_the_check(schedule: str, plan: Plan) -> None:
    ahead = 2 if schedule == "zb-h1" and plan.num_replicas > 1 else None
    check_program(build_program(plan, schedule=schedule), plan, ahead=ahead)


STAGES = [1, 2, 3, 4, 8]
MICROBATCHES = [1, 2, 3, 5, 8, 16, 24]


@pytest.mark.parametrize("num_microbatches", MICROBATCHES)
@pytest.mark.parametrize("num_stages", STAGES)
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b-flush", "1f1b-slots", "1f1b-greedy"])
def test_gpipe_and_1f1b_take_m_plus_s_minus_1_turns(schedule: str, num_stages: int, num_microbatches: int) -> None:
    turns = pass_time_ms(even_plan(num_stages, num_microbatches), schedule, forward=3, backward=5) / 8
    assert turns == num_microbatches + num_stages - 1


@pytest.mark.parametrize("num_stages", STAGES)
def test_flushing_pays_the_fill_for_every_batch_and_going_on_only_once(num_stages: int) -> None:
    # Each batch of one adapter must wait for the one before: two adapters by turns need not drain.
    jobs = tuple(
        job_from_lengths(adapter=adapter, name=f"a{adapter}", lengths=[1] * 64, global_batch_size=16)
        for adapter in range(2)
    )
    stream = [microbatch([sample]) for number in range(4) for job in jobs for sample in job.global_batches[number]]
    plan = Plan(jobs=jobs, num_stages=num_stages, microbatch_tokens=1, microbatches=tuple(stream))
    assert pass_time_ms(plan, "1f1b-flush", forward=1, backward=2) == 8 * (16 + num_stages - 1) * 3
    assert pass_time_ms(plan, "1f1b-slots", forward=1, backward=2) == (8 * 16 + num_stages - 1) * 3


@pytest.mark.parametrize("num_chunks", [2, 3, 4])
@pytest.mark.parametrize("rounds", [1, 2, 5])
@pytest.mark.parametrize("num_stages", STAGES)
def test_interleaving_divides_the_bubble_by_the_chunks(num_stages: int, rounds: int, num_chunks: int) -> None:
    num_microbatches = num_stages * rounds
    found = pass_time_ms(even_plan(num_stages, num_microbatches), f"interleaved-{num_chunks}", forward=12, backward=24)
    assert found == pytest.approx(num_microbatches * 36 + (num_stages - 1) * 36 / num_chunks, abs=1e-9)


@pytest.mark.parametrize(("forward", "inputs", "weights"), [(1, 1, 1), (2, 2, 1), (10, 11, 7), (5, 3, 2), (4, 9, 4)])
@pytest.mark.parametrize("num_microbatches", [8, 11, 24])
@pytest.mark.parametrize("num_stages", STAGES)
def test_zb_h1_has_its_published_bubble(
    num_stages: int, num_microbatches: int, forward: int, inputs: int, weights: int
) -> None:
    found = pass_time_ms(
        even_plan(num_stages, num_microbatches), "zb-h1", forward=forward, backward=inputs + weights, weight=weights
    )
    bubble = (num_stages - 1) * (forward + inputs - weights)
    assert found == pytest.approx(num_microbatches * (forward + inputs + weights) + bubble, abs=1e-9)


def test_with_a_frozen_base_zb_h1_gains_almost_nothing() -> None:
    # 8 stages, 32 microbatches, forward 10, backward 11 of which 0.5 make the adapters' weight gradients.
    plan = even_plan(8, 32)
    plain, split = (
        pass_time_ms(plan, schedule, forward=10, backward=11.5, weight=0.5) - 32 * 21.5
        for schedule in ("1f1b-flush", "zb-h1")
    )
    assert [plain, split] == pytest.approx([150.5, 143.5])


@pytest.mark.parametrize("latency", [0.25, 1.0, 4.0])
@pytest.mark.parametrize(("num_stages", "num_microbatches"), [(2, 2), (2, 8), (4, 4), (4, 16), (8, 24)])
def test_latency_costs_1f1b_in_every_round_and_gpipe_only_once(
    num_stages: int, num_microbatches: int, latency: float
) -> None:
    plan, turns = even_plan(num_stages, num_microbatches), (num_microbatches + num_stages - 1) * 11.0
    hops = 2 * (num_stages - 1)
    plain = pass_time_ms(plan, "1f1b-flush", forward=5, backward=6, latency=latency)
    assert plain == pytest.approx(turns + latency * (hops * num_microbatches / num_stages + 2 * (num_stages - 2)))
    assert pass_time_ms(plan, "gpipe", forward=5, backward=6, latency=latency) == pytest.approx(turns + hops * latency)


@pytest.mark.parametrize(("latency", "hidden"), [(0.0, True), (2.0, True), (5.5, True), (6.0, False)])
def test_wide_warmup_hides_latency_up_to_half_a_turn(latency: float, hidden: bool) -> None:
    # In steady state a turn costs F + B = 11 exactly while 2 c <= F + B: another 8 microbatches cost 8 turns.
    times = [
        pass_time_ms(even_plan(4, count), "1f1b-wide", forward=5, backward=6, latency=latency) for count in (48, 56)
    ]
    assert (times[1] - times[0] == pytest.approx(8 * 11.0)) is hidden
