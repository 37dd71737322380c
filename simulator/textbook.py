"""Textbook questions: M equal microbatches of one adapter on S stages, at the same cost everywhere."""

from ..planner.jobs import job_from_lengths
from ..planner.plan import Plan, microbatch
from ..traces.costs import CostProfile, uniform_profile
from ..traces.counted import counted
from .errors import SimulationError

_TOKENS = 1000
"""Tokens of every microbatch: any number does, since the cost does not depend on it."""
_MOST_FORWARDS = 2**20
"""A mistyped number must not eat all memory: on 8 stages these take 32 s and 1.2 GiB (2 CPU cores, 2026-11-26)."""
_MOST_STAGES = 2**12
"""With 8 microbatches these take 16 s there; 2^16 took more than 9 minutes."""


def textbook_plan(*, num_stages: int, num_microbatches: int, num_replicas: int = 1, num_batches: int = 1) -> Plan:
    """`num_batches` global batches of `num_microbatches` microbatches a replica, of one sample each."""
    for name, value in (
        ("num_stages", num_stages),
        ("num_microbatches", num_microbatches),
        ("num_replicas", num_replicas),
        ("num_batches", num_batches),
    ):
        if value < 1:
            raise SimulationError(f"{name}={value} must be at least 1")
    per_batch = num_microbatches * num_replicas
    num_forwards = num_stages * per_batch * num_batches
    if num_stages > _MOST_STAGES or num_forwards > _MOST_FORWARDS:
        raise SimulationError(
            f"{counted(num_stages, 'stage')} with {counted(per_batch * num_batches, 'microbatch')} are "
            f"{num_forwards:,} forwards; a textbook question has {_MOST_STAGES:,} stages and "
            f"{_MOST_FORWARDS:,} forwards at most: lower them"
        )
    job = job_from_lengths(
        adapter=0, name="adapter", lengths=[_TOKENS] * (per_batch * num_batches), global_batch_size=per_batch
    )
    return Plan(
        jobs=(job,),
        num_stages=num_stages,
        num_replicas=num_replicas,
        microbatch_tokens=_TOKENS,
        microbatches=tuple(microbatch([sample]) for batch in job.global_batches for sample in batch),
    )


def parse_uniform(text: str, *, num_stages: int, num_chunks: int = 1) -> CostProfile:
    """The profile of "F,B" or "F,B,W": ms per microbatch and stage of forward, whole backward, weight part of it."""
    parts = text.split(",")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if len(values) not in (2, 3) or any(value != value or value == float("inf") for value in values):
        raise SimulationError(
            f"uniform='{text}' must be F,B or F,B,W in ms: forward, whole backward, and the part of the backward that "
            "makes weight gradients"
        )
    return uniform_profile(
        forward_ms=values[0],
        backward_ms=values[1],
        weight_ms=values[2] if len(values) == 3 else 0.0,
        num_stages=num_stages,
        num_chunks=num_chunks,
    )
