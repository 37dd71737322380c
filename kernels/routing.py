"""Which rows of a microbatch belong to which adapter, and the words that adapter's dropout is drawn from.

A `Routing` is built once per microbatch and read by every linear of every layer; everything the device needs is in it.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .routing_checks import check_adapters, check_segments
from .segments import Blocks, Segment, Tiles
from .tables import Tables, WantedTables
from .upload import to_device, write

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DROPOUT_LEVELS = 65536
"""Dropout probabilities are multiples of 1 / 65536: 16 random bits decide one feature, so one word serves two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """The segments of one microbatch with each adapter's scaling, dropout and random words. Make it with `build`."""

    num_rows: int
    segments: tuple[Segment, ...]
    """Sorted by first row, disjoint."""
    scaling: tuple[float, ...]
    dropout: tuple[float, ...]
    seeds: tuple[int, ...]
    words: Tensor
    """int32 `[num_adapters, 2]` on the device: (seed, global_batch) of each adapter, folded; `refresh` rewrites it."""
    thresholds: Tensor
    """int32 `[num_adapters]`: a feature is kept where its 16 bits are at least this."""
    branch_scale: Tensor
    """float32 `[num_adapters]`: scaling / (1 - p), what the kept features are multiplied with."""
    token_index: Tensor
    """int32 `[num_rows]`: each row's place in its adapter's global batch, in data order."""
    has_dropout: bool
    """Whether any adapter that owns a row here drops features."""
    description: Tensor
    """int64 `[2 + 3 * num_segments]` on the CPU: rows, dropout or not, segments; what a compiled graph carries along,
    so that other segments need no other graph."""
    tables: Tables = field(repr=False)
    plans: dict[Any, Any] = field(default_factory=dict, repr=False)
    """What the fused linears have recorded for these segments (`tape.Plan`), by what else they depend on."""

    @classmethod
    def build(
        cls,
        *,
        num_rows: int,
        segments: Sequence[Segment],
        scaling: Sequence[float],
        dropout: Sequence[float],
        seeds: Sequence[int],
        global_batches: Sequence[int],
        token_index: Sequence[int] | Tensor | None = None,
        device: torch.device | str = "cpu",
        wanted: WantedTables | None = None,
    ) -> Routing:
        """Check the segments and put what the kernels read on `device`, in one copy that nobody waits for (`to`).

        `scaling`, `dropout`, `seeds` and `global_batches` hold one entry per adapter, indexed as `lora_a`;
        `token_index` one per row (None: the row number). Tables of the heights in `wanted` are made at once; those
        asked for later are made then, and their heights noted there. Raises `ValueError` naming the argument and its
        value.
        """
        import torch

        ordered = tuple(sorted(segments, key=lambda segment: segment.first_row))
        check_adapters(scaling, dropout, seeds, global_batches)
        check_segments(num_rows, ordered, len(scaling))
        tables = Tables(
            segments=ordered,
            num_rows=num_rows,
            num_adapters=len(scaling),
            device=torch.device("cpu"),
            wanted=wanted or WantedTables(),
        )
        on_host = cls(
            num_rows=num_rows,
            segments=ordered,
            scaling=tuple(float(value) for value in scaling),
            dropout=tuple(float(p) for p in dropout),
            seeds=tuple(int(seed) for seed in seeds),
            words=folded_words(seeds, global_batches),
            thresholds=_thresholds(dropout),
            branch_scale=_branch_scale(scaling, dropout),
            token_index=_token_index(token_index, num_rows),
            has_dropout=_drops(ordered, dropout),
            description=_describe(num_rows, ordered, dropout),
            tables=tables.with_wanted(),
        )
        return on_host.to(device)

    @classmethod
    def from_tensors(
        cls, description: Tensor, words: Tensor, thresholds: Tensor, branch_scale: Tensor, token_index: Tensor
    ) -> Routing:
        """The routing of a compiled graph's op: what the kernels read, without the host's scaling and seeds."""
        made = _described(description.numpy().tobytes(), words.shape[0], words.device)
        return replace(made, words=words, thresholds=thresholds, branch_scale=branch_scale, token_index=token_index)

    def tensors(self) -> tuple[Tensor, ...]:
        """All that the kernels read, the tables that are there included."""
        return self.words, self.thresholds, self.branch_scale, self.token_index, *self.tables.tensors()

    def with_tensors(self, tensors: Sequence[Tensor]) -> Routing:
        """The same routing with these in place of what `tensors` gave: on the device that they are on."""
        words, thresholds, branch_scale, token_index, *rest = tensors
        return replace(
            self,
            words=words,
            thresholds=thresholds,
            branch_scale=branch_scale,
            token_index=token_index,
            tables=self.tables.with_tensors(rest, device=words.device),
            plans={},
        )

    def to(self, device: torch.device | str) -> Routing:
        """The same routing on `device`: copied on the current stream, which others have to wait for."""
        return self.with_tensors(to_device(self.tensors(), device))

    @property
    def num_adapters(self) -> int:
        return len(self.scaling)

    @property
    def device(self) -> torch.device:
        return self.words.device

    def refresh(self, *, global_batches: Sequence[int], token_index: Sequence[int] | Tensor | None = None) -> None:
        """Rewrite the random words (and, if given, the token indices) in place.

        A captured CUDA graph reads them from the same addresses, so its next replay on the current stream draws fresh
        masks.
        """
        check_adapters(self.scaling, self.dropout, self.seeds, global_batches)
        write(self.words, folded_words(self.seeds, global_batches))
        if token_index is not None:
            write(self.token_index, _token_index(token_index, self.num_rows))

    def with_scaling(self, *, scaling: Sequence[float], dropout: Sequence[float]) -> Routing:
        """The same segments and random words with other scaling and dropout; tiles stay shared."""
        check_adapters(scaling, dropout, self.seeds, self.seeds)
        thresholds, branch_scale = to_device((_thresholds(dropout), _branch_scale(scaling, dropout)), self.device)
        return replace(
            self,
            scaling=tuple(scaling),
            dropout=tuple(dropout),
            thresholds=thresholds,
            branch_scale=branch_scale,
            has_dropout=_drops(self.segments, dropout),
            description=_describe(self.num_rows, self.segments, dropout),
        )

    def tiles(self, height: int) -> Tiles:
        """Row tiles of at most `height` rows, shared by every layer of the microbatch."""
        return self.tables.tiles(height)

    def blocks(self, height: int) -> Blocks:
        """Blocks of `height` rows and who owns them, shared likewise."""
        return self.tables.blocks(height)


def _drops(segments: tuple[Segment, ...], dropout: Sequence[float]) -> bool:
    return any(dropout[segment.adapter] > 0.0 for segment in segments)


def _describe(num_rows: int, segments: tuple[Segment, ...], dropout: Sequence[float]) -> Tensor:
    import torch

    numbers = [num_rows, int(_drops(segments, dropout))]
    for segment in segments:
        numbers += [segment.first_row, segment.num_rows, segment.adapter]
    return torch.tensor(numbers, dtype=torch.int64)


@functools.lru_cache(maxsize=64)
def _described(description: bytes, num_adapters: int, device: torch.device) -> Routing:
    """A routing of these segments whose tables are kept, so that the layers of a microbatch share them."""
    numbers = struct.unpack(f"<{len(description) // 8}q", description)
    segments = tuple(
        Segment(first_row=numbers[i], num_rows=numbers[i + 1], adapter=numbers[i + 2])
        for i in range(2, len(numbers), 3)
    )
    on_host = Routing.build(
        num_rows=numbers[0],
        segments=segments,
        scaling=[1.0] * num_adapters,
        dropout=[0.5 * numbers[1]] * num_adapters,
        seeds=[0] * num_adapters,
        global_batches=[0] * num_adapters,
    )
    # later calls, which may come on other streams, find the same tables
    return replace(on_host, tables=replace(on_host.tables, device=device, any_stream=True))


def folded_words(seeds: Sequence[int], global_batches: Sequence[int]) -> Tensor:
    """int32 `[num_adapters, 2]`: a hash of (seed, global_batch), so near seeds give unrelated masks."""
    import torch

    words = []
    for seed, global_batch in zip(seeds, global_batches, strict=True):
        digest = hashlib.blake2b(f"{int(seed)}:{int(global_batch)}".encode(), digest_size=8).digest()
        words.append(struct.unpack("<2i", digest))
    return torch.tensor(words, dtype=torch.int32).reshape(len(words), 2)


def _thresholds(dropout: Sequence[float]) -> Tensor:
    import torch

    return torch.tensor([dropout_threshold(p) for p in dropout], dtype=torch.int32)


def dropout_threshold(p: float) -> int:
    """A feature is dropped where its 16 random bits are less than this."""
    return min(round(p * DROPOUT_LEVELS), DROPOUT_LEVELS - 1)


def _branch_scale(scaling: Sequence[float], dropout: Sequence[float]) -> Tensor:
    import torch

    scales = [value / (1.0 - p) for value, p in zip(scaling, dropout, strict=True)]
    return torch.tensor(scales, dtype=torch.float32)


def _token_index(token_index: Sequence[int] | Tensor | None, num_rows: int) -> Tensor:
    import torch

    if token_index is None:
        return torch.arange(num_rows, dtype=torch.int32)
    index = torch.as_tensor(token_index)
    if index.ndim != 1 or index.shape[0] != num_rows:
        raise ValueError(
            f"token_index has shape {tuple(index.shape)}, but one entry per row is needed: give {num_rows} integers"
        )
    if index.dtype == torch.bool or index.is_floating_point():
        raise ValueError(f"token_index has dtype {index.dtype}: give {num_rows} integers")
    return index.to(torch.int32)


__all__ = ["Blocks", "Routing", "Segment", "Tiles", "WantedTables", "dropout_threshold", "folded_words"]
