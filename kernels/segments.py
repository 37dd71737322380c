"""Segments of a microbatch, and the row tiles and blocks that the kernels walk over: host_tables.py makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
