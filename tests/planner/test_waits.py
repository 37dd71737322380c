"""Gaps and their causes."""

import pytest
from hypothesis import given, settings

from loraplex.planner.build_program import build_program
from loraplex.planner.costing import ProgramCosts, program_costs
from loraplex.planner.graph import locate
from loraplex.planner.jobs import job_from_lengths
from loraplex.planner.plan import Plan, microbatch
from loraplex.planner.recurrence import completion_times
from loraplex.planner.waits import CAUSES, find_waits
from loraplex.tests.random_plans import even_plan, plans
from loraplex.traces.costs import CostProfile, CostTerms, LinkCosts, PassCosts, uniform_profile

Gap = tuple[int, str, float, float, str]


def gaps(costs: ProgramCosts) -> list[Gap]:
    """(stage, action, from, to, cause) of every gap."""
    found = completion_times(costs)
    waits = find_waits(costs.graph, start_ms=found.start_ms, end_ms=found.end_ms, arrival_ms=found.arrival_ms)
    columns = (waits.worker, waits.action, waits.start_ms, waits.end_ms, waits.cause)
    return [
        (worker, locate(costs.graph.program, action)[1], start, end, CAUSES[cause])
        for worker, action, start, end, cause in zip(*(column.tolist() for column in columns), strict=True)
    ]


def causes_ms(costs: ProgramCosts) -> dict[str, float]:
    total: dict[str, float] = {}
    for _, _, start, end, cause in gaps(costs):
        total[cause] = total.get(cause, 0.0) + end - start
    return total


def costs_of(plan: Plan, profile: CostProfile, *, schedule: str = "1f1b-slots") -> ProgramCosts:
    return program_costs(build_program(plan, schedule=schedule), plan, profile)


def test_all_of_an_even_run_is_warmup_and_cooldown() -> None:
    found = gaps(costs_of(even_plan(2, 2), uniform_profile(forward_ms=1, backward_ms=2, num_stages=2)))
    assert sorted(found) == [
        (0, "0B0", 2.0, 4.0, "warmup"),
        (0, "0B1", 6.0, 7.0, "cooldown"),
        (1, "1F0", 0.0, 1.0, "warmup"),
        (1, "1S0.0", 7.0, 9.0, "cooldown"),
    ]


def test_a_drain_for_a_step_is_a_dependency() -> None:
    # Two batches of one adapter: stage 0 waits for the gradients of microbatch 3 before it may enter microbatch 4.
    plan = even_plan(2, 4, num_batches=2)
    found = causes_ms(costs_of(plan, uniform_profile(forward_ms=1, backward_ms=1, num_stages=2)))
    assert found == pytest.approx({"warmup": 2.0, "cooldown": 2.0, "dependency": 4.0})


def test_with_even_stages_every_further_wait_is_the_links() -> None:
    profile = uniform_profile(forward_ms=1, backward_ms=2, num_stages=4, latency_ms=0.5)
    assert set(causes_ms(costs_of(even_plan(4, 24), profile))) == {"warmup", "cooldown", "transfer"}


def test_behind_a_slow_stage_the_links_are_not_to_blame() -> None:
    # Three layers on stage 0, one on stage 1: stage 1 waits for stage 0 however fast the link is.
    profile = CostProfile(
        name="uneven",
        origin="textbook",
        source="by layers",
        num_layers=4,
        forward=PassCosts(linears={"fused": CostTerms(fixed_ms=1.0)}),
        backward=PassCosts(linears={"fused": CostTerms(fixed_ms=1.0)}),
        link=LinkCosts(latency_ms=0.25),
    )
    plan = even_plan(2, 16)
    program = build_program(plan, schedule="1f1b-slots")
    found = causes_ms(program_costs(program, plan, profile, layers_per_stage=(3, 1)))
    assert set(found) == {"warmup", "cooldown", "imbalance"}


def test_uneven_microbatches_are_imbalance() -> None:
    job = job_from_lengths(adapter=0, name="a", lengths=[10, 90] * 8, global_batch_size=16)
    plan = Plan(
        jobs=(job,),
        num_stages=3,
        microbatch_tokens=100,
        microbatches=tuple(microbatch([sample]) for sample in job.global_batches[0]),
    )
    profile = CostProfile(
        name="tokens",
        origin="textbook",
        source="by tokens",
        num_layers=3,
        forward=PassCosts(linears={"fused": CostTerms(per_token_ms=0.1)}),
        backward=PassCosts(linears={"fused": CostTerms(per_token_ms=0.2)}),
    )
    assert set(causes_ms(costs_of(plan, profile))) == {"warmup", "cooldown", "imbalance"}


@pytest.mark.parametrize("schedule", ["1f1b-slots", "1f1b-greedy", "gpipe", "zb-h1", "interleaved-2"])
@settings(max_examples=60)
@given(plan=plans(max_stages=5, max_replicas=2))
def test_work_and_gaps_fill_every_workers_time(schedule: str, plan: Plan) -> None:
    program = build_program(plan, schedule=schedule)
    profile = CostProfile(
        name="mixed",
        origin="textbook",
        source="by tokens, with links",
        num_layers=2 * plan.num_stages,
        forward=PassCosts(linears={"fused": CostTerms(fixed_ms=0.1, per_token_ms=0.1)}),
        backward=PassCosts(linears={"fused": CostTerms(fixed_ms=0.1, per_token_ms=0.2)}),
        weight_share=0.3,
        step_fixed_ms=0.1,
        link=LinkCosts(latency_ms=0.2, bytes_per_ms=10.0, bytes_per_token=1.0),
    )
    costs = program_costs(program, plan, profile)
    makespan = completion_times(costs).makespan_ms()
    for worker in range(len(program.workers)):
        work = costs.duration_ms[costs.graph.worker == worker].sum()
        waited = sum(end - start for owner, _, start, end, _ in gaps(costs) if owner == worker)
        assert work + waited == pytest.approx(makespan)
