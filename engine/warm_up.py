"""Before training a worker runs a few microbatches once, over made-up messages, and forgets them.

The first passes over a stage load its kernels, and compile those that no run has compiled before: 0.6 to 1 s of an 8B
model on an H200, minutes on a new machine. In training a stage would begin with it only when the stages before it are
through; here all do at once.
"""

from collections import Counter
from collections.abc import Hashable
from dataclasses import replace

from ..planner.plan import Microbatch, Plan
from .batch import TokenSource
from .buckets import BatchBucket, GraphBuckets
from .device_memory import forget_peak
from .profile_plan import measuring_program
from .run_alone import run_alone
from .stage import Stage

_WORTH_A_GRAPH = 3
"""Microbatches of a bucket from which on it is captured here: a capture takes the host as long as two of them."""


def warm_up(stage: Stage, plan: Plan, tokens: TokenSource) -> None:
    """Forward and backward of `kinds` of the plan. Adapters that have not been trained stay as they are.

    Raises what training would, as when memory runs out.
    """
    alone = replace(plan, microbatches=kinds(plan, buckets=stage.buckets), num_replicas=1)
    run_alone(stage, alone, measuring_program(alone, with_steps=False), tokens=tokens)
    # The backward closed the batches that it knew of.
    for adapter in stage.adapters:
        adapter.closed.clear()
    # What is told in the end is training's: loading weights and compiling may take more for a moment.
    forget_peak(stage.device)


def kinds(plan: Plan, *, buckets: GraphBuckets | None = None) -> tuple[Microbatch, ...]:
    """The first microbatch of every kind that has kernels of its own: by whether it holds one adapter or several, draws
    dropout or not, and by size, to a factor of two. Of a bucket that comes often two, so that its graph is captured.

    Its samples are taken to be of the first global batch, so that no adapter needs to have taken a step.
    """
    dropout = [job.lora.lora_dropout for job in plan.jobs]
    first: dict[Hashable, Microbatch] = {}
    counts: Counter[Hashable] = Counter()
    for held in plan.microbatches:
        owners = [adapter for adapter, _ in held.adapter_tokens()]
        if not owners:
            continue
        drops = any(dropout[owner] > 0 for owner in owners)
        bucket = None if buckets is None else buckets.bucket_of(held, dropout=dropout)
        kind = bucket or (len(owners) > 1, drops, held.num_tokens().bit_length())
        counts[kind] += 1
        first.setdefault(kind, held)
    # The largest first: what its graph needs of a lane serves those of all others.
    largest_first = sorted(first.items(), key=lambda item: -item[1].num_tokens())
    return tuple(
        _as_first(held)
        for kind, held in largest_first
        for _ in range(2 if isinstance(kind, BatchBucket) and counts[kind] >= _WORTH_A_GRAPH else 1)
    )


def _as_first(held: Microbatch) -> Microbatch:
    return Microbatch(samples=tuple(replace(sample, global_batch=0) for sample in held.samples))
