"""Rival systems as plans: what other ways of training the same jobs would send through the pipeline.

A system run is one plan, or several that run one after another. A padded plan holds samples at their padded lengths, so
that replaying it costs what padding costs; `num_tokens` keeps the real ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .jobs import Job, Sample
from .packing.pack_greedy import Bins, Pack, best_fit_decreasing, first_fit_decreasing
from .packing.workload import Workload, workload_of
from .plan import Plan, microbatch
from .published_planner import published_bins, with_dummies


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemRun:
    """How one system would train the jobs."""

    name: str
    plans: tuple[Plan, ...]
    """Run one after another, the pipeline drained between them."""
    num_tokens: int
    """Real tokens of the jobs, padding left out."""
    about: str


def sequential_fixed(jobs: Sequence[Job], *, num_stages: int, num_samples: int, padded: bool = False) -> SystemRun:
    """One adapter after another, `num_samples` samples a microbatch in data order, flushed at every global batch.

    Unpadded, this is what LoRAFusion (arXiv 2510.00206) measured as "Megatron-LM" with a pipeline, by its scripts.
    `padded`: every sample is padded to the longest beside it.
    """
    plans = []
    for job in jobs:
        cut = [
            [_padded(row) if padded else tuple(row) for row in _rows(batch, num_samples)]
            for batch in _alone(job).global_batches
        ]
        batches = tuple(tuple(sample for row in rows for sample in row) for rows in cut)
        bins = tuple(microbatch(row) for rows in cut for row in rows)
        plans.append(
            Plan(
                jobs=(replace(job, global_batches=batches),),
                num_stages=num_stages,
                microbatch_tokens=max(batch.num_tokens() for batch in bins),
                schedule="1f1b-flush",
                microbatches=bins,
                strategy="sequential padded" if padded else "sequential fixed",
            )
        )
    beside = ", each padded to the longest beside it" if padded else ""
    return SystemRun(
        name="sequential-padded" if padded else "sequential-fixed",
        plans=tuple(plans),
        num_tokens=sum(job.num_tokens() for job in jobs),
        about=f"one adapter at a time, {_count(num_samples)} a microbatch in data order{beside}, flushed",
    )


def most_samples(jobs: Sequence[Job], *, microbatch_tokens: int, padded: bool = False) -> int:
    """The largest fixed number of samples with which no microbatch of any job exceeds its tokens; at least 1."""

    def fits(count: int) -> bool:
        return all(
            sum(sample.num_tokens for sample in (_padded(row) if padded else row)) <= microbatch_tokens
            for job in jobs
            for batch in job.global_batches
            for row in _rows(batch, count)
        )

    largest = max(len(batch) for job in jobs for batch in job.global_batches)
    return max((count for count in range(1, largest + 1) if fits(count)), default=1)


def _rows(batch: Sequence[Sample], count: int) -> list[Sequence[Sample]]:
    return [batch[first : first + count] for first in range(0, len(batch), count)]


def _padded(row: Sequence[Sample]) -> tuple[Sample, ...]:
    longest = max(sample.num_tokens for sample in row)
    return tuple(replace(sample, num_tokens=longest) for sample in row)


def _count(num_samples: int) -> str:
    return f"{num_samples} sample{'s' if num_samples > 1 else ''}"


def sequential_packed(
    jobs: Sequence[Job], *, num_stages: int, microbatch_tokens: int, pad_multiple: int = 1
) -> SystemRun:
    """One adapter after another, each global batch packed best-fit decreasing."""
    plans = []
    for job in jobs:
        alone = _alone(job)
        workload = workload_of(
            (alone,), microbatch_tokens=microbatch_tokens, num_stages=num_stages, pad_multiple=pad_multiple
        )
        bins = [row for items in workload.chains[0] for row in best_fit_decreasing(workload, items)]
        plans.append(_plan((alone,), workload, bins, microbatch_tokens=microbatch_tokens, strategy="sequential packed"))
    return SystemRun(
        name="sequential-packed",
        plans=tuple(plans),
        num_tokens=sum(job.num_tokens() for job in jobs),
        about="one adapter at a time, packed without padding",
    )


def mlora_round_robin(jobs: Sequence[Job], *, num_stages: int, num_samples: int, pad_multiple: int = 1) -> SystemRun:
    """mLoRA (arXiv 2312.02515): adapters by turns, `num_samples` of one adapter a microbatch, data order, no flush.

    As LoRAFusion measured it: a fixed number of samples, set by hand for each data set, not padded to the longest.
    """
    queues = [[row for batch in job.global_batches for row in _rows(batch, num_samples)] for job in jobs]
    rows = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    bins = tuple(microbatch(list(row)) for row in rows)
    plan = Plan(
        jobs=tuple(jobs),
        num_stages=num_stages,
        microbatch_tokens=max(batch.padded_tokens(pad_multiple) for batch in bins),
        pad_multiple=pad_multiple,
        microbatches=bins,
        strategy="mlora round robin",
    )
    return SystemRun(
        name="mlora",
        plans=(plan,),
        num_tokens=sum(job.num_tokens() for job in jobs),
        about=f"adapters by turns, {_count(num_samples)} of one adapter a microbatch, data order, continuous 1F1B",
    )


def lorafusion(
    jobs: Sequence[Job],
    *,
    num_stages: int,
    microbatch_tokens: int,
    pad_multiple: int = 1,
    pack: Pack = first_fit_decreasing,
) -> SystemRun:
    """The published planner (arXiv 2510.00206), from its description, with the dummies its verification inserts.

    Pairs by head and tail, each (pair, step) packed by `pack` (its greedy start by default, a MILP on wish), the last
    microbatches of neighbouring rounds merged with a look at the receiver's next round only, then empty microbatches
    until dependents are num_stages apart.
    """
    workload = workload_of(jobs, microbatch_tokens=microbatch_tokens, num_stages=num_stages, pad_multiple=pad_multiple)
    bins = with_dummies(workload, published_bins(workload, pack=pack))
    return SystemRun(
        name="lorafusion",
        plans=(_plan(jobs, workload, bins, microbatch_tokens=microbatch_tokens, strategy="lorafusion"),),
        num_tokens=sum(job.num_tokens() for job in jobs),
        about=f"published planner; {sum(not items for items in bins)} of {len(bins)} microbatches are dummies",
    )


def all_systems(
    jobs: Sequence[Job], *, num_stages: int, microbatch_tokens: int, pad_multiple: int = 1
) -> tuple[SystemRun, ...]:
    """Every rival on the same jobs; those that count samples put as many into a microbatch as always fit."""
    unpadded, padded = (most_samples(jobs, microbatch_tokens=microbatch_tokens, padded=wide) for wide in (False, True))
    return (
        sequential_fixed(jobs, num_stages=num_stages, num_samples=unpadded),
        sequential_fixed(jobs, num_stages=num_stages, num_samples=padded, padded=True),
        sequential_packed(jobs, num_stages=num_stages, microbatch_tokens=microbatch_tokens, pad_multiple=pad_multiple),
        mlora_round_robin(jobs, num_stages=num_stages, num_samples=unpadded, pad_multiple=pad_multiple),
        lorafusion(jobs, num_stages=num_stages, microbatch_tokens=microbatch_tokens, pad_multiple=pad_multiple),
    )


def _alone(job: Job) -> Job:
    return replace(
        job, global_batches=tuple(tuple(replace(sample, adapter=0) for sample in batch) for batch in job.global_batches)
    )


def _plan(jobs: Sequence[Job], workload: Workload, bins: Bins, *, microbatch_tokens: int, strategy: str) -> Plan:
    return Plan(
        jobs=tuple(jobs),
        num_stages=workload.num_stages,
        microbatch_tokens=microbatch_tokens,
        pad_multiple=workload.pad_multiple,
        microbatches=workload.microbatches(bins),
        strategy=strategy,
    )
