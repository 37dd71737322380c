"""Makes the row tiles and blocks of a microbatch: arrays on the host, all heights at once, then tables on a device.

What is counted by segment is plain Python, since they are few; what is written by tile or block is numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .bucket import Bucket
from .segments import NO_ADAPTER, Blocks, Segment, Tiles
from .sizes import ceil_div

if TYPE_CHECKING:
    from torch import Tensor

BORDER_HEIGHT = 64
"""Of the tiles beside blocks."""
Rows = NDArray[np.int32]
Run = tuple[int, int, int]
"""First row, end row, adapter; it may be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTiles:
    """Runs of rows that are to be cut into tiles: what `Tiles` is made of."""

    height: int
    runs: tuple[Run, ...]
    """Sorted by adapter, those of none last."""
    spans: Mapping[int, tuple[int, int]]
    """First and end index of the tiles of each adapter that has some."""
    num_tiles: int
    bucket: Bucket | None = None
    """Where it is given, empty tiles fill up those of adapters and those of none."""

    @classmethod
    def of(cls, runs: Sequence[Run], *, height: int, bucket: Bucket | None = None) -> HostTiles:
        """Tiles of at most `height` rows."""
        spans: dict[int, tuple[int, int]] = {}
        num_tiles = 0
        for first_row, end_row, adapter in runs:
            first_tile = num_tiles
            num_tiles += ceil_div(end_row - first_row, height)
            if num_tiles > first_tile and adapter != NO_ADAPTER:
                spans[adapter] = spans[adapter][0] if adapter in spans else first_tile, num_tiles
        return cls(height=height, runs=tuple(runs), spans=spans, num_tiles=num_tiles, bucket=bucket)

    def ranges(self, num_adapters: int) -> Iterator[tuple[int, int, int, int]]:
        """Of every adapter, as `Tiles.ranges` holds them."""
        for adapter, (first, end) in self.spans.items():
            yield adapter, first, end, 0
        for adapter in range(num_adapters):
            if adapter not in self.spans:
                yield adapter, 0, 0, 0

    def num_rows(self) -> int:
        """Of all tiles."""
        return sum(end_row - first_row for first_row, end_row, _ in self.runs)

    def num_owned(self) -> int:
        """Tiles of adapters."""
        return max((end for _, end in self.spans.values()), default=0)

    def num_places(self) -> int:
        """In the table."""
        if self.bucket is None:
            return self.num_tiles
        return self.bucket.num_owned(self.height) + self.bucket.num_padded(self.height)

    def filled(self, table: Rows) -> Rows:
        """The table with all its places: the `num_tiles` rows of these tiles, and empty ones."""
        if self.bucket is None:
            return table
        made = np.zeros((self.num_places(), 4), np.int32)
        owned, first_padded = self.num_owned(), self.bucket.num_owned(self.height)
        made[:owned] = table[:owned]
        made[first_padded:, 2] = NO_ADAPTER
        made[first_padded : first_padded + self.num_tiles - owned] = table[owned:]
        return made

    def on_device(self, table: Tensor, ranges: Tensor) -> Tiles:
        """The tiles, with their tensors."""
        bucket = self.bucket
        most = max((end - first for first, end in self.spans.values()), default=0)
        return Tiles(
            height=self.height,
            table=table,
            ranges=ranges,
            num_owners=len(self.spans) if bucket is None else ranges.shape[0],
            most_tiles=most if bucket is None else ceil_div(bucket.num_rows, self.height),
            num_owned=self.num_owned() if bucket is None else bucket.num_owned(self.height),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTables:
    """Tiles of some heights and blocks of others, as arrays."""

    tiles: tuple[HostTiles, ...]
    """Those of the tile heights, then `Blocks.borders` of the block heights."""
    block_heights: tuple[int, ...]
    rows: Rows
    """int32 `[.., 4]`: `Tiles.table` of all tiles, then `Tiles.ranges` of all."""
    owners: tuple[Rows, ...]
    """`Blocks.owners` by block height."""
    num_adapters: int

    @classmethod
    def of(
        cls, segments: Sequence[Segment], *, num_rows: int, num_adapters: int,
        tile_heights: Iterable[int] = (), block_heights: Iterable[int] = (), bucket: Bucket | None = None,
    ) -> HostTables:  # fmt: skip
        """Of segments sorted by first row. A bucket fills up tiles alone: in one, nobody asks for blocks."""
        owned = [(segment.first_row, segment.end_row, segment.adapter) for segment in segments]
        runs = sorted(owned, key=_adapter) + _gaps(owned, num_rows)
        heights = tuple(sorted(block_heights))
        blocks = [_blocks(owned, height, num_rows=num_rows) for height in heights]
        tiles = (
            *[HostTiles.of(runs, height=height, bucket=bucket) for height in sorted(tile_heights)],
            *[HostTiles.of(borders, height=BORDER_HEIGHT) for _, borders in blocks],
        )
        ranges = [span for table in tiles for span in table.ranges(num_adapters)]
        return cls(
            tiles=tiles,
            block_heights=heights,
            rows=np.concatenate((*_tables(tiles), np.array(ranges, np.int32).reshape(-1, 4))),
            owners=tuple(owners for owners, _ in blocks),
            num_adapters=num_adapters,
        )

    def arrays(self) -> tuple[Rows, ...]:
        """All that goes to a device."""
        return self.rows, *self.owners

    def on_device(self, tensors: Sequence[Tensor]) -> tuple[dict[int, Tiles], dict[int, Blocks]]:
        """The tables by height, made of what `arrays` gave once it is there."""
        rows, *owners = tensors
        num_tables, num_tile_heights = len(self.tiles), len(self.tiles) - len(self.block_heights)
        places = [table.num_places() for table in self.tiles]
        parts = rows.split_with_sizes([*places, *[self.num_adapters] * num_tables])
        sent = list(map(HostTiles.on_device, self.tiles, parts[:num_tables], parts[num_tables:]))
        blocks = [
            Blocks(height=height, owners=owned, borders=borders, num_border_rows=tiles.num_rows())
            for height, owned, borders, tiles in zip(
                self.block_heights, owners, sent[num_tile_heights:], self.tiles[num_tile_heights:], strict=True
            )
        ]
        return {table.height: table for table in sent[:num_tile_heights]}, {block.height: block for block in blocks}


def _gaps(runs: list[Run], num_rows: int) -> list[Run]:
    """The rows of none between runs that are sorted by row."""
    ends, first_rows = [0, *[run[1] for run in runs]], [*[run[0] for run in runs], num_rows]
    return [(end, first, NO_ADAPTER) for end, first in zip(ends, first_rows, strict=True) if end < first]


def _blocks(runs: list[Run], height: int, *, num_rows: int) -> tuple[Rows, list[Run]]:
    """`Blocks.owners`, int32 `[num_blocks]`, and what lies before and behind the whole blocks of runs sorted by row."""
    owners = np.full(ceil_div(num_rows, height), NO_ADAPTER, np.int32)
    borders = []
    for first_row, end_row, adapter in runs:
        # the last block of all may be shorter
        first, end = ceil_div(first_row, height), end_row // height if end_row < num_rows else len(owners)
        owners[first:end] = adapter
        first_whole = min(first * height, end_row)
        borders += [(first_row, first_whole, adapter), (min(max(first_whole, end * height), end_row), end_row, adapter)]
    return owners, sorted(borders, key=_adapter)


def _adapter(run: Run) -> int:
    return run[2]


def _tables(tables: Sequence[HostTiles]) -> Iterator[Rows]:
    """`Tiles.table` of each, one after another."""
    rows = _cut(tables)
    if all(table.bucket is None for table in tables):
        yield rows
        return
    first = 0
    for table in tables:
        yield table.filled(rows[first : first + table.num_tiles])
        first += table.num_tiles


def _cut(tables: Sequence[HostTiles]) -> Rows:
    """int32 `[tiles of all tables, 4]`: first row, end row, adapter, 0."""
    runs = np.array([(*run, table.height) for table in tables for run in table.runs], np.int32).reshape(-1, 4)
    num_tiles = -((runs[:, 0] - runs[:, 1]) // runs[:, 3])
    rows = runs.repeat(num_tiles, axis=0)
    place = np.arange(len(rows), dtype=np.int32) - (num_tiles.cumsum(dtype=np.int32) - num_tiles).repeat(num_tiles)
    rows[:, 0] += place * rows[:, 3]
    np.minimum(rows[:, 0] + rows[:, 3], rows[:, 1], out=rows[:, 1])
    rows[:, 3] = 0
    return rows
