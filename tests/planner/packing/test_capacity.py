"""Choosing the tokens of a microbatch by predicted makespan."""

import pytest

from loraplex.planner.errors import JobError, PlanError
from loraplex.planner.make_plan import make_plan
from loraplex.planner.packing.capacity import try_capacities
from loraplex.planner.plan import Plan
from loraplex.tests.random_jobs import jobs_of
from loraplex.traces.costs import CostProfile, CostTerms, PassCosts

JOBS = jobs_of([[[9, 5, 4]] * 4, [[8, 8]] * 4])


def plan_with(capacity: int) -> Plan:
    return make_plan(JOBS, num_stages=2, microbatch_tokens=capacity)


def profile(*, fixed_ms: float, per_token_ms: float) -> CostProfile:
    terms = CostTerms(fixed_ms=fixed_ms, per_token_ms=per_token_ms)
    return CostProfile(
        name="p",
        origin="textbook",
        source="for this test",
        num_layers=2,
        forward=PassCosts(linears={"fused": terms}),
        backward=PassCosts(linears={"fused": terms}),
    )


def test_dear_launches_want_large_microbatches() -> None:
    trials = try_capacities([10, 40], plan_with=plan_with, profile=profile(fixed_ms=100.0, per_token_ms=0.001))
    assert [trial.microbatch_tokens for trial in trials] == [40, 10]
    assert trials[0].makespan_ms < trials[1].makespan_ms


def test_dear_tokens_want_small_ones_that_fill_the_pipeline_sooner() -> None:
    trials = try_capacities([40, 10], plan_with=plan_with, profile=profile(fixed_ms=0.0, per_token_ms=1.0))
    assert [trial.microbatch_tokens for trial in trials] == [10, 40]


def test_a_capacity_that_a_sample_exceeds_comes_last() -> None:
    trials = try_capacities([8, 10], plan_with=plan_with, profile=profile(fixed_ms=1.0, per_token_ms=1.0))
    assert [(trial.microbatch_tokens, trial.plan is None) for trial in trials] == [(10, False), (8, True)]
    with pytest.raises(PlanError, match=r"no plan at any of the capacities \[7, 8\]: adapter 'a0', sample 0"):
        try_capacities([7, 8], plan_with=plan_with, profile=profile(fixed_ms=1.0, per_token_ms=1.0))
    with pytest.raises(JobError, match="adapter 'a0', sample 0"):
        try_capacities([8], plan_with=plan_with, profile=profile(fixed_ms=1.0, per_token_ms=1.0))


def test_without_a_profile_they_cannot_be_compared() -> None:
    with pytest.raises(PlanError, match=r"capacities \[10, 40\] cannot be compared without a cost profile"):
        try_capacities([10, 40], plan_with=plan_with, profile=None)
