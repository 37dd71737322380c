"""Packing to less than a microbatch may hold.

A full microbatch is the best one only while there are enough of them to fill the pipeline. Small global batches, or one
long sample that forces a large capacity on everybody, leave fewer microbatches between two steps of an adapter than
there are stages, and the stages wait. Cut finer, the same samples flow: on simulated 70B stages
(docs/when-to-share.md), four mixed adapters with global batches of 4 on 8 stages went from 2,376 to 5,410 tokens/s.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..errors import PlanError
from ..jobs import Job, Sample
from ..plan import Plan, microbatch
from .lower_bounds import lower_bounds
from .workload import workload_of

Planner = Callable[[Sequence[Job], int], Plan]
"""Makes a plan of jobs whose microbatches hold so many tokens: make_plan with everything else settled."""


def plan_at_target(
    jobs: Sequence[Job], *, target_tokens: int, microbatch_tokens: int, planner: Planner, pad_multiple: int = 1
) -> Plan:
    """A plan whose microbatches are filled up to `target_tokens`, except that a longer sample gets one to itself.

    No microbatch exceeds `microbatch_tokens`, which every sample must fit into. `pad_multiple` is the planner's.
    Raises PlanError for a target above the capacity.
    """
    if not 1 <= target_tokens <= microbatch_tokens:
        raise PlanError(
            f"target_tokens={target_tokens} must lie between 1 and microbatch_tokens={microbatch_tokens}; correct it"
        )
    # A sample cut to the target fills its microbatch, so that nothing joins it; then it gets its length back.
    whole_tokens = target_tokens // pad_multiple * pad_multiple
    plan = planner([cut_samples(job, whole_tokens) for job in jobs], target_tokens)
    samples = {
        (sample.adapter, sample.index): sample for job in jobs for batch in job.global_batches for sample in batch
    }
    bounds = lower_bounds(
        workload_of(
            jobs,
            microbatch_tokens=microbatch_tokens,
            num_stages=plan.num_stages,
            num_replicas=plan.num_replicas,
            pad_multiple=plan.pad_multiple,
            schedule=plan.schedule,
        )
    )
    return replace(
        plan,
        jobs=tuple(jobs),
        microbatch_tokens=microbatch_tokens,
        microbatches=tuple(
            microbatch([samples[sample.adapter, sample.index] for sample in batch.samples])
            for batch in plan.microbatches
        ),
        lower_bound_slots=bounds.slots(),
        strategy=plan.strategy if target_tokens == microbatch_tokens else f"{plan.strategy}, to {target_tokens} tokens",
    )


def cut_samples(job: Job, tokens: int) -> Job:
    """The job with every sample cut to at most so many tokens: what a planner may be shown in its place."""

    def cut(sample: Sample) -> Sample:
        if sample.num_tokens <= tokens:
            return sample
        return replace(sample, num_tokens=tokens, num_target_tokens=min(sample.num_target_tokens, tokens))

    return replace(job, global_batches=tuple(tuple(map(cut, batch)) for batch in job.global_batches))
