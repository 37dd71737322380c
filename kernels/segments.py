"""Segments of a microbatch, and the row tiles and blocks that the kernels walk over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .sizes import ceil_div

if TYPE_CHECKING:
    from torch import Tensor

NO_ADAPTER = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A run of rows that belong to one adapter."""

    first_row: int
    num_rows: int
    adapter: int
    """Index into `lora_a` and `lora_b`; rows that no segment covers belong to no adapter."""

    @property
    def end_row(self) -> int:
        return self.first_row + self.num_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Row tiles of at most `height` rows, none of which holds rows of two owners."""

    height: int
    table: Tensor
    """int32 `[num_tiles, 4]`: first row, end row, adapter (-1: none), 0; sixteen bytes, one load."""
    ranges: Tensor
    """int32 `[num_adapters, 4]`: adapter, first and end index of its tiles in `table` (they stand together), 0; those
    with tiles first."""
    num_owners: int
    """So many adapters own rows."""
    most_tiles: int
    """Of one adapter."""
    num_owned: int
    """So many tiles, the first ones, belong to adapters; the rest to none."""

    @property
    def num_tiles(self) -> int:
        return int(self.table.shape[0])

    def tensors(self) -> tuple[Tensor, ...]:
        return self.table, self.ranges

    def with_tensors(self, tensors: Iterator[Tensor]) -> Tiles:
        """The same with the next ones in place of what `tensors` gave."""
        return replace(self, table=next(tensors), ranges=next(tensors))


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Blocks of exactly `height` rows, wherever the segments' borders lie."""

    height: int
    owners: Tensor
    """int32 `[num_blocks]`: the adapter that owns every row of the block, -1 where there is none such."""
    borders: Tiles
    """The rows of adapters in blocks without one owner."""
    num_border_rows: int

    def tensors(self) -> tuple[Tensor, ...]:
        return self.owners, *self.borders.tensors()

    def with_tensors(self, tensors: Iterator[Tensor]) -> Blocks:
        """The same with the next ones in place of what `tensors` gave."""
        return replace(self, owners=next(tensors), borders=self.borders.with_tensors(tensors))


def make_tiles(segments: tuple[Segment, ...], height: int, *, num_rows: int, num_adapters: int) -> Tiles:
    """Cut every owner's rows into tiles, on the host; adapters' tiles first, in adapter order, then rows of none."""
    runs = [
        (segment.first_row, segment.end_row, adapter)
        for adapter in range(num_adapters)
        for segment in segments
        if segment.adapter == adapter
    ]
    runs += [(first_row, end_row, NO_ADAPTER) for first_row, end_row in _gaps(segments, num_rows)]
    return _cut(runs, height, num_adapters=num_adapters)


def _cut(runs: list[tuple[int, int, int]], height: int, *, num_adapters: int) -> Tiles:
    """Tiles of runs (first row, end row, adapter) that come sorted by adapter, those of no adapter last."""
    import torch

    table: list[tuple[int, int, int, int]] = []
    ends: dict[int, tuple[int, int]] = {}
    num_owned = 0
    for first_row, end_row, adapter in runs:
        first_tile = len(table)
        table += [(row, min(row + height, end_row), adapter, 0) for row in range(first_row, end_row, height)]
        if adapter != NO_ADAPTER:
            ends[adapter] = (ends.get(adapter, (first_tile, 0))[0], len(table))
            num_owned = len(table)
    ranges = [(adapter, first, end, 0) for adapter, (first, end) in ends.items()]
    ranges += [(adapter, 0, 0, 0) for adapter in range(num_adapters) if adapter not in ends]
    return Tiles(
        height=height,
        table=torch.tensor(table, dtype=torch.int32).reshape(len(table), 4),
        ranges=torch.tensor(ranges, dtype=torch.int32).reshape(len(ranges), 4),
        num_owners=len(ends),
        most_tiles=max((end - first for first, end in ends.values()), default=0),
        num_owned=num_owned,
    )


def make_blocks(segments: tuple[Segment, ...], height: int, *, num_rows: int, num_adapters: int) -> Blocks:
    """Who owns each block of rows; the rest of the adapters' rows as tiles of their own. On the host."""
    import torch

    owners = [NO_ADAPTER] * ceil_div(num_rows, height)
    runs: list[tuple[int, int, int]] = []
    for segment in segments:
        for block in range(segment.first_row // height, ceil_div(segment.end_row, height)):
            first_row = max(segment.first_row, block * height)
            end_row = min(segment.end_row, (block + 1) * height)
            if end_row - first_row == min(height, num_rows - block * height):
                owners[block] = segment.adapter
            else:
                runs.append((first_row, end_row, segment.adapter))
    runs.sort(key=lambda run: run[2])
    return Blocks(
        height=height,
        owners=torch.tensor(owners, dtype=torch.int32),
        borders=_cut(runs, 64, num_adapters=num_adapters),
        num_border_rows=sum(end_row - first_row for first_row, end_row, _ in runs),
    )


def _gaps(segments: tuple[Segment, ...], num_rows: int) -> list[tuple[int, int]]:
    """Runs of rows that no segment covers."""
    gaps = []
    row = 0
    for segment in segments:
        if segment.first_row > row:
            gaps.append((row, segment.first_row))
        row = segment.end_row
    if row < num_rows:
        gaps.append((row, num_rows))
    return gaps
