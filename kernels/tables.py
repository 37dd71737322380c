"""The row tiles and blocks of one microbatch, as its routing keeps them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .bucket import Bucket
from .host_tables import HostTables
from .segments import Blocks, Segment, Tiles
from .upload import to_device

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class WantedTables:
    """Heights that kernels have asked for.

    Shared by the routings of a run it lets all but the first make their tables ahead: which heights a layer wants
    follows from its shapes and its tuned sizes, of which a routing knows nothing.
    """

    tiles: set[int] = field(default_factory=set)
    blocks: set[int] = field(default_factory=set)


@dataclass(slots=True, kw_only=True)
class Tables:
    """Tables by height, made when they are first asked for, on `device`, and shared by every layer from then on."""

    segments: tuple[Segment, ...]
    num_rows: int
    num_adapters: int
    device: torch.device
    bucket: Bucket | None = None
    wanted: WantedTables = field(default_factory=WantedTables)
    any_stream: bool = False
    """Whether a table may be read on another stream than it was asked for on: then the host waits until it is there."""
    _tiles: dict[int, Tiles] = field(default_factory=dict, repr=False)
    _blocks: dict[int, Blocks] = field(default_factory=dict, repr=False)

    def tiles(self, height: int) -> Tiles:
        """Row tiles of at most `height` rows."""
        if height not in self._tiles:
            self.wanted.tiles.add(height)
            self._make(tile_heights=[height])
        return self._tiles[height]

    def blocks(self, height: int) -> Blocks:
        """Blocks of `height` rows and who owns them."""
        if height not in self._blocks:
            self.wanted.blocks.add(height)
            self._make(block_heights=[height])
        return self._blocks[height]

    def tensors(self) -> tuple[Tensor, ...]:
        """Those of all tables that are there."""
        tables: list[Tiles | Blocks] = [*self._tiles.values(), *self._blocks.values()]
        return tuple(tensor for table in tables for tensor in table.tensors())

    def _make(self, *, tile_heights: Iterable[int] = (), block_heights: Iterable[int] = ()) -> None:
        on_host = HostTables.of(
            self.segments, num_rows=self.num_rows, num_adapters=self.num_adapters,
            tile_heights=tile_heights, block_heights=block_heights, bucket=self.bucket,
        )  # fmt: skip
        tiles, blocks = on_host.on_device(to_device(on_host.arrays(), self.device))
        if self.any_stream and self.device.type == "cuda":
            import torch

            torch.cuda.current_stream(self.device).synchronize()
        self._tiles |= tiles
        self._blocks |= blocks
