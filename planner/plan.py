"""The nouns that come out: `Microbatch` and `Plan`. Reading and writing is in plan_file.py, checking in verify.py."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

from .jobs import Job, Sample

if TYPE_CHECKING:
    from .verify import Violation


@dataclass(frozen=True, slots=True, kw_only=True)
class Microbatch:
    """Samples that go through the pipeline together, sorted by adapter, then by index.

    Empty only where a slot of a replicated pipeline has no work for this replica.
    """

    samples: tuple[Sample, ...] = ()

    def num_tokens(self) -> int:
        """Tokens it holds, without padding."""
        return sum(sample.num_tokens for sample in self.samples)

    def padded_tokens(self, pad_multiple: int) -> int:
        """Tokens it occupies when each adapter's share is rounded up to `pad_multiple`."""
        return sum(-(-tokens // pad_multiple) * pad_multiple for _, tokens in self.adapter_tokens())

    def num_target_tokens(self) -> int:
        """Tokens that enter a loss."""
        return sum(sample.num_target_tokens for sample in self.samples)

    def sum_of_squares(self) -> int:
        """Sum over samples of the squared length: what attention costs."""
        return sum(sample.num_tokens**2 for sample in self.samples)

    def adapter_tokens(self) -> tuple[tuple[int, int], ...]:
        """(adapter, tokens) for each adapter it holds, in row order."""
        return tuple(
            (adapter, sum(sample.num_tokens for sample in share))
            for adapter, share in groupby(self.samples, key=lambda sample: sample.adapter)
        )

    def global_batches(self) -> tuple[tuple[int, int], ...]:
        """The (adapter, global batch) pairs it holds, each once, in row order."""
        return tuple(dict.fromkeys((sample.adapter, sample.global_batch) for sample in self.samples))


def microbatch(samples: tuple[Sample, ...] | list[Sample]) -> Microbatch:
    """A Microbatch of these samples in canonical order (adapter, then training order)."""
    return Microbatch(samples=tuple(sorted(samples, key=lambda sample: (sample.adapter, sample.index))))


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverRecord:
    """What one call of the packing solver did; `seconds` is outside equality, since it differs from run to run."""

    instance: str
    status: str
    num_microbatches: int
    lower_bound: int
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which samples share a microbatch, and in which order the microbatches enter the pipeline.

    With R replicas, microbatch i belongs to slot i // R and replica i % R.
    """

    jobs: tuple[Job, ...]
    num_stages: int
    num_replicas: int = 1
    microbatch_tokens: int
    pad_multiple: int = 1
    schedule: str = "1f1b"
    microbatches: tuple[Microbatch, ...]
    strategy: str = ""
    adapter_groups: tuple[tuple[int, ...], ...] = ()
    """Adapters that the strategy packed together; empty where it needs no groups."""
    lower_bound_slots: int = 0
    """No plan of these jobs needs fewer slots (volume, Martello-Toth L2, chain of dependent steps)."""
    solver: tuple[SolverRecord, ...] = ()
    data_fingerprint: str = ""
    """SHA-256 over the tokens and masks the lengths came from; empty when planned from lengths alone."""
    seconds: float = field(default=0.0, compare=False)

    def num_workers(self) -> int:
        """Stages of all replicas: the processes of a run."""
        return self.num_stages * self.num_replicas

    def num_slots(self) -> int:
        """Slots in order of entry: one microbatch per replica each."""
        return -(-len(self.microbatches) // self.num_replicas)

    def slot_microbatches(self, slot: int) -> tuple[Microbatch, ...]:
        """The microbatches of one slot, one per replica."""
        return self.microbatches[slot * self.num_replicas : (slot + 1) * self.num_replicas]

    def replica_microbatches(self, replica: int) -> Iterator[tuple[int, Microbatch]]:
        """(index, microbatch) of the microbatches one replica runs, in order, empty ones left out."""
        for index in range(replica, len(self.microbatches), self.num_replicas):
            if self.microbatches[index].samples:
                yield index, self.microbatches[index]

    def num_tokens(self) -> int:
        """Real tokens of the whole plan."""
        return sum(batch.num_tokens() for batch in self.microbatches)

    def verify(self) -> "tuple[Violation, ...]":
        """Every broken rule, told in a sentence; empty for a valid plan (see verify.py)."""
        from .verify import verify  # here, since verify.py reads Plan

        return verify(self)
