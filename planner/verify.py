"""An independent reading of the rules of a Plan, from scratch: it shares no code with what makes plans."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ..traces.counted import counted
from .jobs import Sample
from .plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One broken rule, told in a sentence."""

    rule: str
    """settings, jobs, samples, capacity, mixing, order, layout, adapter_groups or bound."""
    message: str
    microbatch: int = -1
    """Where in the plan; -1 where no single microbatch is at fault."""


def verify(plan: Plan) -> tuple[Violation, ...]:
    """Every violation of a plan, in the order of the rules; empty for a valid plan."""
    settings = tuple(_settings(plan))
    if settings:
        return settings
    return (
        *_jobs(plan),
        *_samples(plan),
        *_capacity(plan),
        *_mixing(plan),
        *_order(plan),
        *_layout(plan),
        *_adapter_groups(plan),
        *_bound(plan),
    )


def _settings(plan: Plan) -> Iterator[Violation]:
    for name in ("num_stages", "num_replicas", "microbatch_tokens", "pad_multiple"):
        value = getattr(plan, name)
        if value < 1:
            yield Violation(rule="settings", message=f"{name}={value} must be at least 1")
    if not plan.jobs:
        yield Violation(rule="settings", message="the plan has no jobs; it needs at least one")


def _jobs(plan: Plan) -> Iterator[Violation]:
    names = Counter(job.name for job in plan.jobs)
    for name, count in names.items():
        if count > 1:
            yield Violation(rule="jobs", message=f"adapter name '{name}' is used by {count} jobs; names must differ")
    for adapter, job in enumerate(plan.jobs):
        indices = Counter(sample.index for batch in job.global_batches for sample in batch)
        for index, count in indices.items():
            if count > 1:
                yield Violation(rule="jobs", message=f"adapter '{job.name}' has {count} samples of index {index}")
        for global_batch, batch in enumerate(job.global_batches):
            if not batch:
                yield Violation(rule="jobs", message=f"adapter '{job.name}': global batch {global_batch} is empty")
            for sample in batch:
                if (sample.adapter, sample.global_batch) != (adapter, global_batch):
                    yield Violation(
                        rule="jobs",
                        message=f"adapter '{job.name}', sample {sample.index} says adapter {sample.adapter}, global "
                        f"batch {sample.global_batch} but stands at adapter {adapter}, global batch {global_batch}",
                    )
                if sample.num_tokens < 1 or sample.num_target_tokens < 0:
                    yield Violation(
                        rule="jobs",
                        message=f"adapter '{job.name}', sample {sample.index} has {sample.num_tokens} tokens, "
                        f"{sample.num_target_tokens} of them targets; it needs at least 1 and 0",
                    )


def _named(plan: Plan, sample: Sample) -> str:
    known = 0 <= sample.adapter < len(plan.jobs)
    name = f"'{plan.jobs[sample.adapter].name}'" if known else f"number {sample.adapter}"
    return f"adapter {name}, global batch {sample.global_batch}, sample {sample.index}"


def _samples(plan: Plan) -> Iterator[Violation]:
    # A multiset: a sample scheduled twice must not hide behind a set.
    wanted = Counter(sample for job in plan.jobs for batch in job.global_batches for sample in batch)
    placed = Counter(sample for batch in plan.microbatches for sample in batch.samples)
    for sample, count in wanted.items():
        found = placed.get(sample, 0)
        if found != count:
            fault = "is missing" if found == 0 else f"is scheduled {counted(found, 'time')} instead of {count}"
            yield Violation(rule="samples", message=f"{_named(plan, sample)} {fault}")
    for sample, count in placed.items():
        if sample not in wanted:
            yield Violation(
                rule="samples",
                message=f"{_named(plan, sample)} is scheduled {counted(count, 'time')} but belongs to no job",
            )


def _capacity(plan: Plan) -> Iterator[Violation]:
    for position, batch in enumerate(plan.microbatches):
        shares: Counter[int] = Counter()
        for sample in batch.samples:
            shares[sample.adapter] += sample.num_tokens
        tokens = sum((share + plan.pad_multiple - 1) // plan.pad_multiple for share in shares.values())
        if tokens * plan.pad_multiple > plan.microbatch_tokens:
            yield Violation(
                rule="capacity",
                message=f"microbatch {position} occupies {tokens * plan.pad_multiple} tokens with each adapter's share "
                f"rounded up to {plan.pad_multiple}; it may hold {plan.microbatch_tokens}",
                microbatch=position,
            )


def _mixing(plan: Plan) -> Iterator[Violation]:
    for position, batch in enumerate(plan.microbatches):
        steps: dict[int, set[int]] = {}
        for sample in batch.samples:
            steps.setdefault(sample.adapter, set()).add(sample.global_batch)
        for adapter, numbers in steps.items():
            if len(numbers) > 1:
                yield Violation(
                    rule="mixing",
                    message=f"microbatch {position} holds global batches {sorted(numbers)} of adapter {adapter}; "
                    "one microbatch may feed one optimizer step of an adapter",
                    microbatch=position,
                )


def _order(plan: Plan) -> Iterator[Violation]:
    first: dict[tuple[int, int], int] = {}
    last: dict[tuple[int, int], int] = {}
    for position, batch in enumerate(plan.microbatches):
        for sample in batch.samples:
            first.setdefault((sample.adapter, sample.global_batch), position)
            last[sample.adapter, sample.global_batch] = position
    for (adapter, number), start in sorted(first.items()):
        end = last.get((adapter, number - 1), -1)
        if end >= 0 and start // plan.num_replicas <= end // plan.num_replicas:
            yield Violation(
                rule="order",
                message=f"adapter {adapter}: global batch {number} starts in slot {start // plan.num_replicas} "
                f"(microbatch {start}) but global batch {number - 1} ends in slot {end // plan.num_replicas} "
                f"(microbatch {end}); a step must be complete before the next begins",
                microbatch=start,
            )


def _layout(plan: Plan) -> Iterator[Violation]:
    for position, batch in enumerate(plan.microbatches):
        order = [(sample.adapter, sample.index) for sample in batch.samples]
        if order != sorted(order):
            yield Violation(
                rule="layout",
                message=f"microbatch {position} is not sorted by adapter and index",
                microbatch=position,
            )
    for first in range(0, len(plan.microbatches), plan.num_replicas):
        if not any(batch.samples for batch in plan.microbatches[first : first + plan.num_replicas]):
            yield Violation(
                rule="layout",
                message=f"slot {first // plan.num_replicas} holds no sample on any replica; leave it out",
                microbatch=first,
            )
    if len(plan.microbatches) % plan.num_replicas:
        yield Violation(
            rule="layout",
            message=f"{counted(len(plan.microbatches), 'microbatch')} do not fill whole slots of "
            f"{plan.num_replicas} replicas; add empty ones to the last slot",
        )


def _adapter_groups(plan: Plan) -> Iterator[Violation]:
    members = Counter(adapter for members in plan.adapter_groups for adapter in members)
    for adapter in range(len(plan.jobs) if plan.adapter_groups else 0):
        if members[adapter] != 1:
            yield Violation(
                rule="adapter_groups",
                message=f"adapter {adapter} is in {members[adapter]} adapter groups; it must be in exactly one",
            )
    for adapter in members:
        if not 0 <= adapter < len(plan.jobs):
            yield Violation(rule="adapter_groups", message=f"adapter {adapter} of an adapter group is no job")


def _bound(plan: Plan) -> Iterator[Violation]:
    gap = 2 * plan.num_stages - 1 if plan.schedule == "1f1b-wide" else plan.num_stages
    slot, last = -1, dict[tuple[int, int], int]()
    for first in range(0, len(plan.microbatches), plan.num_replicas):
        row = plan.microbatches[first : first + plan.num_replicas]
        steps = {(sample.adapter, sample.global_batch) for batch in row for sample in batch.samples}
        ready = [last[adapter, number - 1] + gap for adapter, number in steps if (adapter, number - 1) in last]
        slot = max([slot + 1, *ready])
        for step in steps:
            last[step] = slot
    if slot + 1 < plan.lower_bound_slots:
        yield Violation(
            rule="bound",
            message=f"lower_bound_slots={plan.lower_bound_slots} exceeds the {counted(slot + 1, 'slot')} the "
            "plan takes; the bound must be wrong",
        )
