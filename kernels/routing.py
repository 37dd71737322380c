"""Which rows of a microbatch belong to which adapter, and the words that adapter's dropout is drawn from.

A `Routing` is built once per microbatch and read by every linear of every layer; everything the device needs is in it.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .bucket import Bucket
from .host_routing import HostRouting, RoutedAdapters, dropout_threshold, folded_words, token_indices
from .routing_checks import check_adapters
from .segments import Blocks, Segment, Tiles
from .tables import Tables, WantedTables
from .upload import to_device, write

if TYPE_CHECKING:
    import torch
    from torch import Tensor


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
    bucket: Bucket | None = None
    """Where it is given, all that the host decides follows from it and `has_dropout`."""
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
        bucket: Bucket | None = None,
    ) -> Routing:
        """Check the segments and put what the kernels read on `device`, in one copy that nobody waits for.

        `scaling`, `dropout`, `seeds` and `global_batches` hold one entry per adapter, indexed as `lora_a`;
        `token_index` one per row (None: the row number). Tables of the heights in `wanted` are made at once; those
        asked for later are made then, and their heights noted there; a `bucket` fills them up. The copy is made on the
        current stream, which others have to wait for. Raises `ValueError` naming the argument and its value.
        """
        check_adapters(scaling, dropout, seeds, global_batches)
        on_host = HostRouting.of(
            RoutedAdapters.of(scaling=scaling, dropout=dropout, seeds=seeds),
            num_rows=num_rows,
            segments=segments,
            global_batches=global_batches,
            token_index=token_index,
            wanted=wanted or WantedTables(),
            bucket=bucket,
        )
        return cls.of(on_host, to_device(on_host.arrays(), device))

    @classmethod
    def of(cls, on_host: HostRouting, tensors: Sequence[Tensor]) -> Routing:
        """What is on the host, where `tensors` are what `arrays` gave, now on a device."""
        words, thresholds, branch_scale, token_index, *rest = tensors
        adapters, segments = on_host.adapters, on_host.segments
        tiles, blocks = on_host.tables.on_device(rest)
        has_dropout = adapters.drop(segments)
        return cls(
            num_rows=on_host.num_rows,
            segments=segments,
            scaling=adapters.scaling,
            dropout=adapters.dropout,
            seeds=adapters.seeds,
            words=words,
            thresholds=thresholds,
            branch_scale=branch_scale,
            token_index=token_index,
            has_dropout=has_dropout,
            description=_describe(on_host.num_rows, segments, has_dropout=has_dropout),
            tables=Tables(
                segments=segments,
                num_rows=on_host.num_rows,
                num_adapters=len(adapters.seeds),
                device=words.device,
                bucket=on_host.bucket,
                wanted=on_host.wanted,
                _tiles=tiles,
                _blocks=blocks,
            ),
            bucket=on_host.bucket,
        )

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
        import torch

        check_adapters(self.scaling, self.dropout, self.seeds, global_batches)
        write(self.words, torch.from_numpy(folded_words(self.seeds, global_batches)))
        if token_index is not None:
            write(self.token_index, torch.as_tensor(token_indices(token_index, self.num_rows)))

    def with_scaling(self, *, scaling: Sequence[float], dropout: Sequence[float]) -> Routing:
        """The same segments and random words with other scaling and dropout; tiles stay shared."""
        adapters = RoutedAdapters.of(scaling=scaling, dropout=dropout, seeds=self.seeds)
        thresholds, branch_scale = to_device((adapters.thresholds, adapters.branch_scale), self.device)
        has_dropout = adapters.drop(self.segments)
        return replace(
            self,
            scaling=adapters.scaling,
            dropout=adapters.dropout,
            thresholds=thresholds,
            branch_scale=branch_scale,
            has_dropout=has_dropout,
            description=_describe(self.num_rows, self.segments, has_dropout=has_dropout),
        )

    def tiles(self, height: int) -> Tiles:
        """Row tiles of at most `height` rows, shared by every layer of the microbatch."""
        return self.tables.tiles(height)

    def blocks(self, height: int) -> Blocks:
        """Blocks of `height` rows and who owns them, shared likewise."""
        return self.tables.blocks(height)


def _describe(num_rows: int, segments: Sequence[Segment], *, has_dropout: bool) -> Tensor:
    import torch

    numbers = [num_rows, int(has_dropout)]
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


__all__ = ["Blocks", "Routing", "Segment", "Tiles", "WantedTables", "dropout_threshold", "folded_words"]
