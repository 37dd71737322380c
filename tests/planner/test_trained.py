"""How much of a plan was trained on."""

from loraplex.planner.jobs import job_from_lengths
from loraplex.planner.plan import Plan, microbatch
from loraplex.planner.trained import trained_tokens


def test_what_follows_an_adapters_last_step_does_not_count() -> None:
    jobs = tuple(
        job_from_lengths(adapter=adapter, name=name, lengths=lengths, global_batch_size=1)
        for adapter, (name, lengths) in enumerate([("a", [1, 2, 4]), ("b", [10, 20, 40])])
    )
    batches = [[sample for job in jobs for sample in job.global_batches[step]] for step in range(3)]
    plan = Plan(jobs=jobs, num_stages=1, microbatch_tokens=100, microbatches=tuple(map(microbatch, batches)))
    assert trained_tokens(plan, last_steps={}) == 77
    assert trained_tokens(plan, last_steps={"a": 2, "b": 0}) == 17
    assert trained_tokens(plan, last_steps={"b": 1}, microbatches={1, 2}) == 26
