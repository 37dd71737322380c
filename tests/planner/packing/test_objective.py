"""Scores of plans: ends of adapters, slowdowns, predicted makespans."""

from dataclasses import replace

import pytest

from loraplex.planner.errors import PlanError
from loraplex.planner.packing.lower_bounds import batch_bounds
from loraplex.planner.packing.objective import (
    Fairness,
    adapter_ends,
    fairness_of,
    full_slot_ms,
    predicted_makespan_ms,
)
from loraplex.planner.packing.workload import workload_of
from loraplex.planner.plan import Plan
from loraplex.tests.random_jobs import jobs_of
from loraplex.traces.costs import uniform_profile

JOBS = jobs_of([[[6], [6]], [[6]]])


def test_an_adapter_ends_with_the_slot_of_its_last_sample() -> None:
    workload = workload_of(JOBS, microbatch_tokens=10, num_stages=3)
    assert adapter_ends(workload, [[0], [2], [1]]) == [4, 2]
    assert adapter_ends(replace(workload, num_replicas=2), [[0], [2], [1], []]) == [4, 1]


def test_slowdowns_are_weighed_against_running_alone() -> None:
    workload = workload_of(JOBS, microbatch_tokens=10, num_stages=3)
    jobs = (JOBS[0], replace(JOBS[1], weight=2.0, deadline_ms=7.0))
    fairness = fairness_of(jobs, bounds=batch_bounds(workload), gap_slots=3, slot_ms=2.0)
    assert fairness == Fairness(alone=(4, 1), weights=(1.0, 2.0), deadlines=(None, 3))
    assert fairness.score([4, 2]) == (0, 4.0, 2.5)
    assert fairness.score([4, 4]) == (1, 8.0, 4.5)
    assert fairness.due(2.0) == (8, 1)
    assert fairness.due(8.0) == (32, 3)


def test_weights_must_be_above_zero() -> None:
    with pytest.raises(PlanError, match=r"adapter 'a0': weight=0.0 must be above 0"):
        fairness_of([replace(JOBS[0], weight=0.0)], bounds=[(1, 1)], gap_slots=1, slot_ms=None)


def test_the_makespan_of_a_uniform_pipeline_is_its_slots() -> None:
    workload = workload_of(JOBS, microbatch_tokens=10, num_stages=2)
    plan = Plan(jobs=JOBS, num_stages=2, microbatch_tokens=10, microbatches=workload.microbatches([[0], [2], [1]]))
    profile = uniform_profile(forward_ms=1.0, backward_ms=2.0, num_stages=2)
    assert predicted_makespan_ms(plan, profile) == pytest.approx((3 + 2 - 1) * 3.0)
    assert full_slot_ms(profile, plan=plan) == pytest.approx(3.0)
