"""The row tiles and blocks of one microbatch, as its routing keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .segments import Blocks, Segment, Tiles, make_blocks, make_tiles
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
    wanted: WantedTables = field(default_factory=WantedTables)
    any_stream: bool = False
    """Whether a table may be read on another stream than it was asked for on: then the host waits until it is there."""
    _tiles: dict[int, Tiles] = field(default_factory=dict, repr=False)
    _blocks: dict[int, Blocks] = field(default_factory=dict, repr=False)

    def tiles(self, height: int) -> Tiles:
        """Row tiles of at most `height` rows."""
        made = self._tiles.get(height)
        if made is None:
            self.wanted.tiles.add(height)
            on_host = self._cut_tiles(height)
            made = self._tiles[height] = on_host.with_tensors(self._sent(on_host.tensors()))
        return made

    def blocks(self, height: int) -> Blocks:
        """Blocks of `height` rows and who owns them."""
        made = self._blocks.get(height)
        if made is None:
            self.wanted.blocks.add(height)
            on_host = self._cut_blocks(height)
            made = self._blocks[height] = on_host.with_tensors(self._sent(on_host.tensors()))
        return made

    def with_wanted(self) -> Tables:
        """With all tables that others wanted, on the host: `with_tensors` says where they went."""
        return replace(
            self,
            _tiles={height: self._cut_tiles(height) for height in sorted(self.wanted.tiles)},
            _blocks={height: self._cut_blocks(height) for height in sorted(self.wanted.blocks)},
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """Those of all tables that are there."""
        tables: list[Tiles | Blocks] = [*self._tiles.values(), *self._blocks.values()]
        return tuple(tensor for table in tables for tensor in table.tensors())

    def with_tensors(self, tensors: Iterable[Tensor], *, device: torch.device) -> Tables:
        """The same tables with others in place of what `tensors` gave; further ones will be made on `device`."""
        rest = iter(tensors)
        return replace(
            self,
            device=device,
            _tiles={height: table.with_tensors(rest) for height, table in self._tiles.items()},
            _blocks={height: table.with_tensors(rest) for height, table in self._blocks.items()},
        )

    def _cut_tiles(self, height: int) -> Tiles:
        return make_tiles(self.segments, height, num_rows=self.num_rows, num_adapters=self.num_adapters)

    def _cut_blocks(self, height: int) -> Blocks:
        return make_blocks(self.segments, height, num_rows=self.num_rows, num_adapters=self.num_adapters)

    def _sent(self, tensors: tuple[Tensor, ...]) -> Iterator[Tensor]:
        sent = to_device(tensors, self.device)
        if self.any_stream and self.device.type == "cuda":
            import torch

            torch.cuda.current_stream(self.device).synchronize()
        return iter(sent)
