"""Packing to less than a microbatch may hold."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex.planner.errors import PlanError
from loraplex.planner.jobs import Job, job_from_lengths
from loraplex.planner.make_plan import make_plan
from loraplex.planner.packing.targets import plan_at_target
from loraplex.planner.plan import Plan
from loraplex.planner.verify import verify
from loraplex.traces.costs import CostProfile, CostTerms, PassCosts

PER_TOKEN = CostProfile(
    name="per-token",
    origin="textbook",
    source="for tests",
    num_layers=4,
    forward=PassCosts(linears={"fused": CostTerms(per_token_ms=1.0)}),
    backward=PassCosts(linears={"fused": CostTerms(per_token_ms=2.0)}),
)


def stream(jobs: Sequence[Job], microbatch_tokens: int) -> Plan:
    return make_plan(jobs, num_stages=4, microbatch_tokens=microbatch_tokens, strategy="stream")


def jobs_of(*lengths: list[int], global_batch_size: int = 2) -> list[Job]:
    return [
        job_from_lengths(adapter=adapter, name=f"a{adapter}", lengths=own, global_batch_size=global_batch_size)
        for adapter, own in enumerate(lengths)
    ]


def test_a_sample_above_the_target_stands_alone_and_the_others_fill_up_to_it() -> None:
    plan = plan_at_target(
        jobs_of([900, 30, 40, 20], global_batch_size=4), target_tokens=100, microbatch_tokens=1000, planner=stream
    )
    assert sorted(sorted(sample.num_tokens for sample in batch.samples) for batch in plan.microbatches) == [
        [20, 30, 40],
        [900],
    ]
    assert (plan.microbatch_tokens, plan.lower_bound_slots) == (1000, 1)
    assert plan.strategy.endswith(", to 100 tokens")


LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=8)


@given(lengths=st.lists(LENGTHS, min_size=1, max_size=3), target=st.integers(1, 100))
def test_every_plan_keeps_the_rules_and_the_target(lengths: list[list[int]], target: int) -> None:
    plan = plan_at_target(jobs_of(*lengths), target_tokens=target, microbatch_tokens=100, planner=stream)
    assert verify(plan) == ()
    for batch in plan.microbatches:
        assert batch.num_tokens() <= target or len(batch.samples) == 1


def test_finer_microbatches_fill_a_pipeline_that_full_ones_leave_empty() -> None:
    # One adapter, 8 samples of 10 a batch: in one microbatch, 4 stages work one after another; one by one they overlap.
    jobs = jobs_of([10] * 32, global_batch_size=8)
    plan = make_plan(jobs, num_stages=4, microbatch_tokens=80, profile=PER_TOKEN)
    assert {batch.num_tokens() for batch in plan.microbatches} == {10}
    assert plan.strategy.endswith(", to 10 tokens")


def test_a_profile_settles_which_1f1b_order_the_plan_names() -> None:
    jobs = jobs_of([10] * 8, [20] * 8)
    assert make_plan(jobs, num_stages=4, microbatch_tokens=80).schedule == "1f1b"
    assert make_plan(jobs, num_stages=4, microbatch_tokens=80, profile=PER_TOKEN).schedule in (
        "1f1b-slots",
        "1f1b-greedy",
    )


def test_padding_is_kept_at_targets_that_are_no_multiple_of_it() -> None:
    def padded(jobs: Sequence[Job], microbatch_tokens: int) -> Plan:
        return make_plan(jobs, num_stages=2, microbatch_tokens=microbatch_tokens, pad_multiple=8, strategy="stream")

    plan = plan_at_target(
        jobs_of([90, 20, 10, 5]), target_tokens=30, microbatch_tokens=100, planner=padded, pad_multiple=8
    )
    assert verify(plan) == ()
    assert plan.num_tokens() == 125


def test_a_target_outside_the_capacity_is_refused() -> None:
    for target in (0, 101):
        with pytest.raises(PlanError, match=f"target_tokens={target} must lie between 1 and microbatch_tokens=100"):
            plan_at_target(jobs_of([5]), target_tokens=target, microbatch_tokens=100, planner=stream)
