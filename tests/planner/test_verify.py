"""Every rule of a plan, broken once."""

from dataclasses import replace

from hypothesis import given

from loraplex.planner.plan import Microbatch, Plan
from loraplex.planner.verify import Violation, verify
from loraplex.tests.random_jobs import jobs_of
from loraplex.tests.random_plans import plans

JOBS = jobs_of([[[4, 3], [5]], [[6]]])
A0, A1, A2 = (sample for batch in JOBS[0].global_batches for sample in batch)
(B0,) = JOBS[1].global_batches[0]
PLAN = Plan(
    jobs=JOBS,
    num_stages=2,
    microbatch_tokens=10,
    microbatches=(Microbatch(samples=(A0, B0)), Microbatch(samples=(A1,)), Microbatch(samples=(A2,))),
)


def broken(plan: Plan) -> list[tuple[str, str]]:
    return [(violation.rule, violation.message) for violation in verify(plan)]


def with_microbatches(*rows: tuple[object, ...]) -> Plan:
    return replace(PLAN, microbatches=tuple(Microbatch(samples=row) for row in rows))  # type: ignore[arg-type]


def test_a_valid_plan_breaks_nothing() -> None:
    assert verify(PLAN) == ()
    assert PLAN.verify() == ()


@given(plans(max_replicas=3))
def test_random_valid_plans_break_nothing(plan: Plan) -> None:
    assert verify(plan) == ()


def test_a_missing_sample() -> None:
    assert broken(with_microbatches((A0, B0), (A2,))) == [
        ("samples", "adapter 'a0', global batch 0, sample 1 is missing")
    ]


def test_a_sample_scheduled_twice_does_not_hide_in_a_set() -> None:
    assert broken(with_microbatches((A0, B0), (A1,), (A1,), (A2,))) == [
        ("samples", "adapter 'a0', global batch 0, sample 1 is scheduled 2 times instead of 1")
    ]


def test_a_sample_of_no_job() -> None:
    foreign = replace(B0, index=9, num_tokens=1)
    assert broken(with_microbatches((A0, B0), (A1, foreign), (A2,))) == [
        ("samples", "adapter 'a1', global batch 0, sample 9 is scheduled 1 time but belongs to no job")
    ]


def test_a_sample_whose_length_was_changed() -> None:
    shorter = replace(A1, num_tokens=1)
    assert [rule for rule, _ in broken(with_microbatches((A0, B0), (shorter,), (A2,)))] == ["samples", "samples"]


def test_too_many_tokens() -> None:
    assert verify(replace(PLAN, microbatch_tokens=9)) == (
        Violation(
            rule="capacity",
            message="microbatch 0 occupies 10 tokens with each adapter's share rounded up to 1; it may hold 9",
            microbatch=0,
        ),
    )


def test_padding_counts_per_adapter() -> None:
    assert broken(replace(PLAN, pad_multiple=4)) == [
        ("capacity", "microbatch 0 occupies 12 tokens with each adapter's share rounded up to 4; it may hold 10")
    ]


def test_two_steps_of_an_adapter_in_one_microbatch() -> None:
    assert [rule for rule, _ in broken(with_microbatches((A0, B0), (A1, A2)))] == ["mixing", "order"]


def test_steps_out_of_order() -> None:
    assert broken(with_microbatches((A0, B0), (A2,), (A1,))) == [
        (
            "order",
            "adapter 0: global batch 1 starts in slot 1 (microbatch 1) but global batch 0 ends in slot 2 (microbatch "
            "2); a step must be complete before the next begins",
        )
    ]


def test_dependents_may_not_share_a_slot_of_replicas() -> None:
    plan = replace(with_microbatches((A0, B0), (A1,), (A2,), ()), num_replicas=2)
    assert broken(plan) == []
    plan = replace(with_microbatches((A0, B0), (), (A1,), (A2,)), num_replicas=2)
    assert [rule for rule, _ in broken(plan)] == ["order"]


def test_layout() -> None:
    assert broken(with_microbatches((B0, A0), (A1,), (), (A2,))) == [
        ("layout", "microbatch 0 is not sorted by adapter and index"),
        ("layout", "slot 2 holds no sample on any replica; leave it out"),
    ]
    assert [rule for rule, _ in broken(replace(PLAN, num_replicas=2))] == ["layout"]


def test_adapter_groups_hold_every_adapter_once() -> None:
    assert broken(replace(PLAN, adapter_groups=((0, 1),))) == []
    assert broken(replace(PLAN, adapter_groups=((0,), (0, 7)))) == [
        ("adapter_groups", "adapter 0 is in 2 adapter groups; it must be in exactly one"),
        ("adapter_groups", "adapter 1 is in 0 adapter groups; it must be in exactly one"),
        ("adapter_groups", "adapter 7 of an adapter group is no job"),
    ]


def test_a_bound_above_the_plan() -> None:
    assert broken(replace(PLAN, lower_bound_slots=4)) == []  # slots 0, 1 and 3: the last step waits one
    assert broken(replace(PLAN, lower_bound_slots=5)) == [
        ("bound", "lower_bound_slots=5 exceeds the 4 slots the plan takes; the bound must be wrong")
    ]


def test_jobs_are_checked_too() -> None:
    (job,) = jobs_of([[[4, 3]]])
    twins = replace(PLAN, jobs=(*JOBS, replace(JOBS[1], name="a0")))
    assert "adapter name 'a0' is used by 2 jobs; names must differ" in [message for _, message in broken(twins)]
    zero = replace(job, global_batches=((replace(A0, num_tokens=0), replace(A1, index=0)), ()))
    messages = [message for rule, message in broken(replace(PLAN, jobs=(zero,))) if rule == "jobs"]
    assert messages == [
        "adapter 'a0' has 2 samples of index 0",
        "adapter 'a0', sample 0 has 0 tokens, 4 of them targets; it needs at least 1 and 0",
        "adapter 'a0': global batch 1 is empty",
    ]
    moved = replace(job, global_batches=(job.global_batches[0], (replace(A2, global_batch=0),)))
    assert "stands at adapter 0, global batch 1" in broken(replace(PLAN, jobs=(moved,)))[0][1]


def test_impossible_settings_are_all_that_is_said() -> None:
    assert broken(replace(PLAN, num_stages=0, jobs=())) == [
        ("settings", "num_stages=0 must be at least 1"),
        ("settings", "the plan has no jobs; it needs at least one"),
    ]
