"""Which microbatches are replayed as CUDA graphs, and what they are filled up to for it.

Below `GRAPH_TOKENS` a GPU has done a kernel's work before the host has launched the next. One graph serves all
microbatches of a bucket, so buckets are few: rows by steps, samples and adapters by coarse ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..kernels.bucket import Bucket
from ..kernels.routing import WantedTables
from ..kernels.sizes import round_up
from ..planner.plan import Microbatch
from ..traces.graph_tokens import GRAPH_TOKENS, STEP_TOKENS

SAMPLES = (8, 32, 128)
"""Attention starts programs for so many samples of the longest length; those that find nothing to do end at once."""
SEGMENTS = (1, 4, 16)
"""Each may cost one tile that holds no row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchBucket:
    """What a microbatch is filled up to, so that a graph of one serves all: padding, which is a sample of its own,
    and samples without rows behind it."""

    rows: Bucket
    num_samples: int
    """The padding included."""
    has_dropout: bool


@dataclass(frozen=True, slots=True)
class GraphBuckets:
    """The buckets of a stage, and what its layers want of the microbatches in them."""

    _wanted: dict[BatchBucket, WantedTables] = field(default_factory=dict)

    def bucket_of(self, held: Microbatch, *, dropout: Sequence[float]) -> BatchBucket | None:
        """That of a microbatch, where adapter i drops with probability `dropout[i]`; None as `bucket_for`."""
        owners = [adapter for adapter, _ in held.adapter_tokens()]
        return self.bucket_for(
            num_rows=held.num_tokens(),
            num_samples=len(held.samples),
            num_segments=len(owners),
            has_dropout=any(dropout[owner] > 0 for owner in owners),
        )

    def bucket_for(
        self, *, num_rows: int, num_samples: int, num_segments: int, has_dropout: bool
    ) -> BatchBucket | None:
        """None for a microbatch that has more tokens than graphs are for, or more samples or adapters."""
        samples = next((most for most in SAMPLES if num_samples < most), None)
        segments = next((most for most in SEGMENTS if num_segments <= most), None)
        if num_rows > GRAPH_TOKENS or samples is None or segments is None:
            return None
        return BatchBucket(
            rows=Bucket(num_rows=round_up(num_rows, STEP_TOKENS), most_padding=STEP_TOKENS - 1, most_segments=segments),
            num_samples=samples,
            has_dropout=has_dropout,
        )

    def wanted(self, bucket: BatchBucket) -> WantedTables:
        """Always the same object of one bucket. It decides where in a microbatch's buffer its tables lie."""
        return self._wanted.setdefault(bucket, WantedTables())
