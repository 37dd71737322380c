"""Rivals: what each sends through the pipeline, on jobs small enough to check by eye."""

import pytest
from hypothesis import given, settings

from loraplex.planner.dependencies import plan_slots
from loraplex.planner.plan import Plan
from loraplex.planner.systems import (
    SystemRun,
    all_systems,
    lorafusion,
    mlora_round_robin,
    most_samples,
    sequential_fixed,
    sequential_packed,
)
from loraplex.planner.verify import verify
from loraplex.tests.random_jobs import Request, jobs_of, requests

JOBS = jobs_of([[[6, 3, 4], [5]], [[2, 2]]])


def lengths_of(plan: Plan) -> list[list[int]]:
    return [[sample.num_tokens for sample in row.samples] for row in plan.microbatches]


def test_a_fixed_number_of_samples_one_adapter_after_another() -> None:
    run = sequential_fixed(JOBS, num_stages=2, num_samples=2)
    assert [lengths_of(plan) for plan in run.plans] == [[[6, 3], [4], [5]], [[2, 2]]]
    assert {plan.schedule for plan in run.plans} == {"1f1b-flush"}
    assert run.about == "one adapter at a time, 2 samples a microbatch in data order, flushed"


def test_the_same_padded() -> None:
    run = sequential_fixed(JOBS, num_stages=2, num_samples=2, padded=True)
    assert [lengths_of(plan) for plan in run.plans] == [[[6, 6], [4], [5]], [[2, 2]]]
    assert [sample.num_target_tokens for sample in run.plans[0].microbatches[0].samples] == [6, 3]
    assert run.num_tokens == 22  # the real ones


@pytest.mark.parametrize(("tokens", "counts"), [(5, (1, 1)), (6, (1, 1)), (11, (2, 1)), (12, (2, 2)), (13, (3, 2))])
def test_as_many_samples_as_always_fit(tokens: int, counts: tuple[int, int]) -> None:
    # In data order pairs are 6 3 | 4, 5 and 2 2: 9 tokens at most, 12 padded; all three together are 13, or 18.
    found = tuple(most_samples(JOBS, microbatch_tokens=tokens, padded=padded) for padded in (False, True))
    assert found == counts


def test_packed_one_after_another() -> None:
    run = sequential_packed(JOBS, num_stages=2, microbatch_tokens=12)
    assert [lengths_of(plan) for plan in run.plans] == [[[6, 4], [3], [5]], [[2, 2]]]


def test_by_turns() -> None:
    run = mlora_round_robin(JOBS, num_stages=2, num_samples=2)
    assert [lengths_of(plan) for plan in run.plans] == [[[6, 3], [2, 2], [4], [5]]]
    assert run.about == "adapters by turns, 2 samples of one adapter a microbatch, data order, continuous 1F1B"


def test_the_published_planner_pays_its_spacing_in_dummies() -> None:
    # It merges 5 into the microbatch of 2 + 2, blind to the step of its own adapter just before.
    run = lorafusion(JOBS, num_stages=4, microbatch_tokens=12)
    assert [lengths_of(plan) for plan in run.plans] == [[[6, 4], [3], [], [], [], [5, 2, 2]]]
    assert run.about == "published planner; 3 of 6 microbatches are dummies"
    assert plan_slots(run.plans[0]) == 6


def rules_broken(run: SystemRun) -> set[str]:
    return {violation.rule for plan in run.plans for violation in verify(plan)}


@settings(max_examples=100)
@given(requests())
def test_every_rival_keeps_the_rules_but_for_its_dummies(request: Request) -> None:
    runs = all_systems(
        request.jobs,
        num_stages=request.num_stages,
        microbatch_tokens=request.microbatch_tokens,
        pad_multiple=request.pad_multiple,
    )
    names = ["sequential-fixed", "sequential-padded", "sequential-packed", "mlora", "lorafusion"]
    assert [run.name for run in runs] == names
    for run in runs:
        assert rules_broken(run) <= ({"layout"} if run.name == "lorafusion" else set())
        assert run.num_tokens == sum(job.num_tokens() for job in request.jobs)
    (published,) = runs[-1].plans
    assert plan_slots(published) == len(published.microbatches)  # its dummies are all the waiting there is
