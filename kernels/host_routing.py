"""What a routing is made of, on the host: numbers of the adapters, made once for a run, and one microbatch's arrays."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .bucket import Bucket
from .host_tables import HostTables
from .routing_checks import check_adapters, check_segments
from .segments import Segment
from .tables import WantedTables
from .upload import HostArray

if TYPE_CHECKING:
    from torch import Tensor

DROPOUT_LEVELS = 65536
"""Dropout probabilities are multiples of 1 / 65536: 16 random bits decide one feature, so one word serves two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedAdapters:
    """The numbers of each adapter that no microbatch changes. Make it with `of`."""

    scaling: tuple[float, ...]
    dropout: tuple[float, ...]
    seeds: tuple[int, ...]
    thresholds: NDArray[np.int32]
    """int32 `[num_adapters]`: a feature is kept where its 16 bits are at least this."""
    branch_scale: NDArray[np.float32]
    """float32 `[num_adapters]`: scaling / (1 - p), what the kept features are multiplied with."""

    @classmethod
    def of(cls, *, scaling: Sequence[float], dropout: Sequence[float], seeds: Sequence[int]) -> RoutedAdapters:
        """One entry per adapter each. Raises `ValueError` naming the argument and its value."""
        check_adapters(scaling, dropout, seeds, seeds)
        return cls(
            scaling=tuple(float(value) for value in scaling),
            dropout=tuple(float(p) for p in dropout),
            seeds=tuple(int(seed) for seed in seeds),
            thresholds=np.array([dropout_threshold(p) for p in dropout], np.int32),
            branch_scale=np.array([value / (1.0 - p) for value, p in zip(scaling, dropout, strict=True)], np.float32),
        )

    def drop(self, segments: Sequence[Segment]) -> bool:
        """Whether any adapter that owns a row of these drops features."""
        return any(self.dropout[segment.adapter] > 0.0 for segment in segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRouting:
    """One microbatch's segments, and the arrays that go to a device for them (`Routing.of`). Make it with `of`."""

    adapters: RoutedAdapters
    num_rows: int
    segments: tuple[Segment, ...]
    """Sorted by first row, disjoint."""
    words: NDArray[np.int32]
    """int32 `[num_adapters, 2]`."""
    token_index: HostArray | Tensor
    """int32 `[num_rows]`."""
    wanted: WantedTables
    tables: HostTables
    """Those that are wanted."""
    bucket: Bucket | None = None
    """What the tables are filled up to."""

    @classmethod
    def of(
        cls, adapters: RoutedAdapters, *, num_rows: int, segments: Sequence[Segment], global_batches: Sequence[int],
        token_index: Sequence[int] | HostArray | Tensor | None, wanted: WantedTables, bucket: Bucket | None = None,
    ) -> HostRouting:  # fmt: skip
        """As `Routing.build`, which says more."""
        ordered = tuple(sorted(segments, key=lambda segment: segment.first_row))
        num_adapters = len(adapters.seeds)
        check_segments(num_rows, ordered, num_adapters)
        if bucket is not None:
            bucket.check(num_rows, ordered)
        return cls(
            adapters=adapters,
            num_rows=num_rows,
            segments=ordered,
            words=folded_words(adapters.seeds, global_batches),
            token_index=token_indices(token_index, num_rows),
            wanted=wanted,
            tables=HostTables.of(
                ordered, num_rows=num_rows, num_adapters=num_adapters,
                tile_heights=wanted.tiles, block_heights=wanted.blocks, bucket=bucket,
            ),
            bucket=bucket,
        )  # fmt: skip

    def arrays(self) -> tuple[HostArray | Tensor, ...]:
        """All that the kernels read, in the order of `Routing.tensors`."""
        adapters = self.adapters
        return self.words, adapters.thresholds, adapters.branch_scale, self.token_index, *self.tables.arrays()


def folded_words(seeds: Sequence[int], global_batches: Sequence[int]) -> NDArray[np.int32]:
    """int32 `[num_adapters, 2]`: a hash of (seed, global_batch), so near seeds give unrelated masks."""
    words = bytearray().join(_word(int(seed), int(batch)) for seed, batch in zip(seeds, global_batches, strict=True))
    return np.frombuffer(words, "<i4").reshape(-1, 2)


@functools.lru_cache(maxsize=1024)
def _word(seed: int, global_batch: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{global_batch}".encode(), digest_size=8).digest()


def dropout_threshold(p: float) -> int:
    """A feature is dropped where its 16 random bits are less than this."""
    return min(round(p * DROPOUT_LEVELS), DROPOUT_LEVELS - 1)


def token_indices(token_index: Sequence[int] | HostArray | Tensor | None, num_rows: int) -> HostArray | Tensor:
    """int32 `[num_rows]`; a tensor stays on its device, all else is an array without gaps. None: the row number.

    Raises `ValueError` for another shape and for what is no integer.
    """
    if isinstance(token_index, np.ndarray) and token_index.dtype == np.int32 and token_index.shape == (num_rows,):
        return np.ascontiguousarray(token_index)
    import torch

    index = torch.arange(num_rows) if token_index is None else torch.as_tensor(token_index)
    if index.ndim != 1 or index.shape[0] != num_rows:
        raise ValueError(
            f"token_index has shape {tuple(index.shape)}, but one entry per row is needed: give {num_rows} integers"
        )
    if index.dtype == torch.bool or index.is_floating_point():
        raise ValueError(f"token_index has dtype {index.dtype}: give {num_rows} integers")
    index = index.to(torch.int32)
    return index.contiguous().numpy() if index.device.type == "cpu" else index
