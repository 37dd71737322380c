"""Workload: what the packing strategies read. Samples become numbered items: inner loops touch only integers."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index

from ..dependencies import gap_slots, slot_numbers, waits_for
from ..errors import JobError, PlanError
from ..jobs import Job, Sample
from ..plan import Microbatch, microbatch

MAX_TOKENS = 2**31
"""Lengths and capacities above this are taken for mistakes; it also keeps every sum inside 64 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Items to place and the pipeline they enter. An item is a sample's position in `samples`."""

    samples: tuple[Sample, ...]
    sizes: tuple[int, ...]
    """Tokens of each item."""
    chains: tuple[tuple[tuple[int, ...], ...], ...]
    """Items by adapter and global batch. Batch k + 1 enters only after the step of batch k."""
    capacity: int
    """Tokens a microbatch may hold: microbatch_tokens rounded down to a multiple of pad_multiple."""
    pad_multiple: int
    num_stages: int
    num_replicas: int
    gap_slots: int
    """A step's first slot comes at least this much after the last one of the step before it, or the pipeline waits."""

    def padded(self, tokens: int) -> int:
        """What one adapter's share of a microbatch occupies."""
        return -(-tokens // self.pad_multiple) * self.pad_multiple

    def num_slots(self, bins: Sequence[Sequence[int]]) -> int:
        """Slots that bins take in this order, waits included (`dependencies.slot_numbers`)."""
        batch_of = [(sample.adapter, sample.global_batch) for sample in self.samples]
        rows = [
            {batch_of[item] for items in bins[first : first + self.num_replicas] for item in items}
            for first in range(0, len(bins), self.num_replicas)
        ]
        numbers = slot_numbers(waits_for([tuple(row) for row in rows]), gap=self.gap_slots)
        return numbers[-1] + 1 if numbers else 0

    def microbatches(self, bins: Sequence[Sequence[int]]) -> tuple[Microbatch, ...]:
        """Bins of items as Microbatches, in the same order."""
        return tuple(microbatch([self.samples[item] for item in items]) for items in bins)


def workload_of(
    jobs: Sequence[Job],
    *,
    microbatch_tokens: int,
    num_stages: int = 1,
    num_replicas: int = 1,
    pad_multiple: int = 1,
    schedule: str = "1f1b",
) -> Workload:
    """Number the samples of these jobs. Raises JobError or PlanError, naming the adapter and the sample."""
    for name, value in (
        ("num_stages", num_stages),
        ("num_replicas", num_replicas),
        ("pad_multiple", pad_multiple),
        ("microbatch_tokens", microbatch_tokens),
    ):
        if not _is_count(value) or not 1 <= value <= MAX_TOKENS:
            raise PlanError(f"{name}={value!r} must be an integer between 1 and {MAX_TOKENS}; correct it")
    if microbatch_tokens < pad_multiple:
        raise PlanError(
            f"microbatch_tokens={microbatch_tokens} is below pad_multiple={pad_multiple}: no sample would fit; "
            "raise the first or lower the second"
        )
    _check_names(jobs)
    capacity = microbatch_tokens // pad_multiple * pad_multiple
    samples: list[Sample] = []
    chains = []
    for adapter, job in enumerate(jobs):
        _check_job(job, adapter=adapter, capacity=capacity)
        chain = []
        for batch in job.global_batches:
            chain.append(tuple(range(len(samples), len(samples) + len(batch))))
            samples.extend(batch)
        chains.append(tuple(chain))
    return Workload(
        samples=tuple(samples),
        sizes=tuple(int(sample.num_tokens) for sample in samples),
        chains=tuple(chains),
        capacity=capacity,
        pad_multiple=pad_multiple,
        num_stages=num_stages,
        num_replicas=num_replicas,
        gap_slots=gap_slots(schedule, num_stages=num_stages),
    )


def _is_count(value: object) -> bool:
    if isinstance(value, bool):
        return False
    try:
        index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _check_names(jobs: Sequence[Job]) -> None:
    if not jobs:
        raise JobError("there are 0 adapters; a plan needs at least one: add a job")
    seen: dict[str, int] = {}
    for adapter, job in enumerate(jobs):
        if not job.name:
            raise JobError(f"adapter {adapter} has an empty name; give it one")
        if job.name in seen:
            raise JobError(
                f"adapter name '{job.name}' stands at positions {seen[job.name]} and {adapter}; names must differ: "
                "rename one"
            )
        seen[job.name] = adapter


def _check_job(job: Job, *, adapter: int, capacity: int) -> None:
    if not job.global_batches:
        raise JobError(f"adapter '{job.name}' has no samples; give it data or leave it out")
    indices = set()
    for position, batch in enumerate(job.global_batches):
        if not batch:
            raise JobError(f"adapter '{job.name}': global batch {position} is empty; leave it out")
        for sample in batch:
            where = f"adapter '{job.name}', sample {sample.index!r} (global batch {position})"
            for name, value, least in (
                ("index", sample.index, 0),
                ("num_tokens", sample.num_tokens, 1),
                ("num_target_tokens", sample.num_target_tokens, 0),
            ):
                if not _is_count(value) or not least <= value <= MAX_TOKENS:
                    raise JobError(f"{where}: {name}={value!r} must be an integer between {least} and {MAX_TOKENS}")
            if sample.num_tokens > capacity:
                raise JobError(
                    f"{where} has {sample.num_tokens} tokens; a microbatch holds {capacity}: raise microbatch_tokens, "
                    "or truncate or skip such samples (--overlong with --lengths; sequence_len and long_samples in a "
                    "job file)"
                )
            if (sample.adapter, sample.global_batch) != (adapter, position):
                raise JobError(
                    f"{where} says adapter {sample.adapter}, global batch {sample.global_batch} but stands at adapter "
                    f"{adapter}, global batch {position}; number samples by position"
                )
            if sample.index in indices:
                raise JobError(f"{where}: index {sample.index} is used twice; number samples uniquely over the run")
            indices.add(sample.index)
