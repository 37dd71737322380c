"""Rival systems as plans: what other ways of training the same jobs would send through the pipeline.

A system run is one plan, or several that run one after another. A padded plan holds samples at their padded lengths, so
that replaying it costs what padding costs; `num_tokens` keeps the real ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .jobs import Job, Sample
from .packing.grouping import head_tail
from .packing.pack_greedy import Bins, Pack, best_fit_decreasing, first_fit_decreasing, occupied
from .packing.rounds import round_instances
from .packing.workload import Workload, workload_of
from .plan import Plan, microbatch

DUMMY: list[int] = []
"""A microbatch of the published system that only keeps dependents apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemRun:
    """How one system would train the jobs."""

    name: str
    plans: tuple[Plan, ...]
    """Run one after another, the pipeline drained between them."""
    num_tokens: int
    """Real tokens of the jobs, padding left out."""
    about: str


def sequential_padded(jobs: Sequence[Job], *, num_stages: int, microbatch_tokens: int) -> SystemRun:
    """One adapter after another; microbatches in data order, every sample padded to the longest beside it."""
    plans = []
    for job in jobs:
        batches, bins = [], []
        for batch in job.global_batches:
            rows = _in_order([sample.num_tokens for sample in batch], room=microbatch_tokens, padded=True)
            padded: list[Sample] = []
            for first, last in rows:
                longest = max(sample.num_tokens for sample in batch[first:last])
                row = [replace(sample, adapter=0, num_tokens=longest) for sample in batch[first:last]]
                padded += row
                bins.append(microbatch(row))
            batches.append(tuple(padded))
        plans.append(
            Plan(
                jobs=(replace(job, global_batches=tuple(batches)),),
                num_stages=num_stages,
                microbatch_tokens=microbatch_tokens,
                microbatches=tuple(bins),
                strategy="sequential padded",
            )
        )
    return SystemRun(
        name="sequential-padded",
        plans=tuple(plans),
        num_tokens=sum(job.num_tokens() for job in jobs),
        about="one adapter at a time, samples padded to the longest of their microbatch",
    )


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


def mlora_round_robin(
    jobs: Sequence[Job], *, num_stages: int, microbatch_tokens: int, pad_multiple: int = 1
) -> SystemRun:
    """mLoRA (arXiv 2312.02515): all adapters by turns, each microbatch of one adapter, in data order, no flush.

    Kinder than the original: it packs where that pads to the longest sample.
    """
    workload = workload_of(jobs, microbatch_tokens=microbatch_tokens, num_stages=num_stages, pad_multiple=pad_multiple)
    queues: list[list[list[int]]] = []
    for chain in workload.chains:
        queue = []
        for items in chain:
            rows = _in_order([workload.sizes[item] for item in items], room=workload.capacity, padded=False)
            queue += [list(items[first:last]) for first, last in rows]
        queues.append(queue)
    bins = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    return SystemRun(
        name="mlora",
        plans=(_plan(jobs, workload, bins, microbatch_tokens=microbatch_tokens, strategy="mlora round robin"),),
        num_tokens=sum(job.num_tokens() for job in jobs),
        about="adapters by turns, one adapter a microbatch, data order, continuous 1F1B",
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
    bins = _with_dummies(workload, published_bins(workload, pack=pack))
    return SystemRun(
        name="lorafusion",
        plans=(_plan(jobs, workload, bins, microbatch_tokens=microbatch_tokens, strategy="lorafusion"),),
        num_tokens=sum(job.num_tokens() for job in jobs),
        about=f"published planner; {sum(not items for items in bins)} of {len(bins)} microbatches are dummies",
    )


def published_bins(workload: Workload, *, pack: Pack = first_fit_decreasing) -> Bins:
    """What the published planner enters, before it inserts dummies."""
    rounds = [pack(workload, items) for _, _, items in round_instances(workload, grouping=head_tail)]
    return _merge_forward(workload, rounds)


def all_systems(
    jobs: Sequence[Job], *, num_stages: int, microbatch_tokens: int, pad_multiple: int = 1
) -> tuple[SystemRun, ...]:
    """Every rival on the same jobs."""
    return (
        sequential_padded(jobs, num_stages=num_stages, microbatch_tokens=microbatch_tokens),
        sequential_packed(jobs, num_stages=num_stages, microbatch_tokens=microbatch_tokens, pad_multiple=pad_multiple),
        mlora_round_robin(jobs, num_stages=num_stages, microbatch_tokens=microbatch_tokens, pad_multiple=pad_multiple),
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


def _in_order(lengths: Sequence[int], *, room: int, padded: bool) -> list[tuple[int, int]]:
    """Cuts (first, last) of samples in data order into microbatches that fit."""
    cuts, first, longest, total = [], 0, 0, 0
    for position, length in enumerate(lengths):
        longest, total = max(longest, length), total + length
        filled = longest * (position - first + 1) if padded else total
        if filled > room and position > first:
            cuts.append((first, position))
            first, longest, total = position, length, length
    return [*cuts, (first, len(lengths))]


def _merge_forward(workload: Workload, rounds: list[Bins]) -> Bins:
    """Take samples of the next round's last microbatch into this round's last one, smallest first.

    As published, only the receiver's next step is looked at; what this breaks on the giver's side costs dummies.
    """
    rounds = [[list(items) for items in packed] for packed in rounds]
    for here, packed in enumerate(rounds[:-1]):
        if not packed or not rounds[here + 1]:
            continue
        target, source = packed[-1], rounds[here + 1][-1]
        if not _next_is_far(workload, rounds, here=here):
            continue
        present = {workload.samples[item].adapter: workload.samples[item].global_batch for item in target}
        for item in sorted(source, key=lambda item: (workload.sizes[item], item)):
            sample = workload.samples[item]
            if present.get(sample.adapter, sample.global_batch) != sample.global_batch:
                continue
            if occupied(workload, [*target, item]) <= workload.capacity:
                target.append(item)
                source.remove(item)
        if not source:
            rounds[here + 1].pop()
    return [items for packed in rounds for items in packed]


def _next_is_far(workload: Workload, rounds: list[Bins], *, here: int) -> bool:
    """Whether the adapters of this round come again only num_stages microbatches later, one microbatch given up."""
    own = {workload.samples[item].adapter for item in rounds[here][-1]}
    distance = 0
    for packed in rounds[here + 1 :]:
        if any(workload.samples[item].adapter in own for items in packed for item in items):
            return distance - 1 >= workload.gap_slots - 1
        distance += len(packed)
    return True


def _with_dummies(workload: Workload, bins: Bins) -> Bins:
    """Empty microbatches before each one that would come sooner than num_stages after what it depends on."""
    last: dict[tuple[int, int], int] = {}
    out: Bins = []
    for items in bins:
        steps = {(workload.samples[item].adapter, workload.samples[item].global_batch) for item in items}
        earliest = max((last.get((a, k - 1), -workload.gap_slots) + workload.gap_slots for a, k in steps), default=0)
        out += [DUMMY] * max(0, earliest - len(out))
        last.update(dict.fromkeys(steps, len(out)))
        out.append(items)
    return out
