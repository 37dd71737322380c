"""What make_plan and every strategy refuse, and how they say it."""

from dataclasses import replace
from typing import Any

import pytest

from loraplex.planner.dependencies import gap_slots
from loraplex.planner.errors import JobError, PlanError
from loraplex.planner.jobs import Job, Sample
from loraplex.planner.packing.workload import workload_of
from loraplex.tests.random_jobs import jobs_of


def test_items_are_numbered_adapter_by_adapter_and_step_by_step() -> None:
    workload = workload_of(jobs_of([[[5, 6], [7]], [[8]]]), microbatch_tokens=10, num_stages=3, pad_multiple=4)
    assert workload.sizes == (5, 6, 7, 8)
    assert workload.chains == (((0, 1), (2,)), ((3,),))
    assert (workload.capacity, workload.padded(5), workload.gap_slots) == (8, 8, 3)


def test_slots_count_waits_for_dependents_on_both_sides_of_a_replica() -> None:
    workload = workload_of(jobs_of([[[5], [5]], [[5]]]), microbatch_tokens=10, num_stages=3)
    assert workload.num_slots([[0], [2], [1]]) == 4  # the second step of a0 waits for slot 3
    two = replace(workload, num_replicas=2)
    assert two.num_slots([[0], [2], [1], []]) == 4


def test_wide_warm_up_keeps_dependents_further_apart() -> None:
    assert [gap_slots(name, num_stages=4) for name in ("1f1b", "gpipe", "1f1b-wide")] == [4, 4, 7]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_stages": 0}, "num_stages=0 must be an integer between 1 and"),
        ({"num_stages": True}, "num_stages=True must be an integer"),
        ({"num_replicas": -1}, "num_replicas=-1"),
        ({"pad_multiple": 0}, "pad_multiple=0"),
        ({"microbatch_tokens": 10.5}, "microbatch_tokens=10.5 must be an integer"),
        ({"microbatch_tokens": float("nan")}, "microbatch_tokens=nan"),
        ({"microbatch_tokens": 8, "pad_multiple": 16}, "below pad_multiple=16: no sample would fit"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        workload_of(jobs_of([[[5]]]), **({"microbatch_tokens": 10} | settings))


def with_sample(**changes: Any) -> tuple[Job, ...]:
    sample = Sample(adapter=0, global_batch=0, index=7, num_tokens=5, num_target_tokens=5)
    return (Job(name="poems", global_batches=((replace(sample, **changes),),)),)


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ((), "0 adapters"),
        (jobs_of([[[5]], []]), "adapter 'a1' has no samples"),
        (jobs_of([[[5], []]]), "adapter 'a0': global batch 1 is empty"),
        ((Job(name="", global_batches=()),), "adapter 0 has an empty name"),
        ((*jobs_of([[[5]]]), *jobs_of([[[5]]])), "'a0' stands at positions 0 and 1"),
        (with_sample(num_tokens=0), "'poems', sample 7 .*num_tokens=0"),
        (with_sample(num_tokens=-3), "num_tokens=-3"),
        (with_sample(num_tokens=3.5), "num_tokens=3.5"),
        (with_sample(num_tokens=float("nan")), "num_tokens=nan"),
        (with_sample(num_tokens="5"), "num_tokens='5'"),
        (with_sample(num_tokens=True), "num_tokens=True"),
        (with_sample(num_tokens=2**40), "num_tokens="),
        (with_sample(num_tokens=11), "sample 7 .*has 11 tokens; a microbatch holds 10: .*--overlong with --lengths"),
        (with_sample(num_target_tokens=-1), "num_target_tokens=-1"),
        (with_sample(index=-1), "index=-1"),
        (with_sample(adapter=1), "says adapter 1, global batch 0 but stands at adapter 0, global batch 0"),
    ],
)
def test_bad_jobs_name_the_adapter_and_the_sample(jobs: tuple[Job, ...], message: str) -> None:
    with pytest.raises(JobError, match=message):
        workload_of(jobs, microbatch_tokens=10)


def test_an_index_used_twice_is_refused() -> None:
    (job,) = jobs_of([[[5, 6]]])
    twice = replace(job, global_batches=((job.global_batches[0][0],) * 2,))
    with pytest.raises(JobError, match="index 0 is used twice"):
        workload_of((twice,), microbatch_tokens=10)
