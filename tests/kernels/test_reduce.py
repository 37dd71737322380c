"""The second stage of the split reductions, by itself."""

import pytest
import torch

from loraplex.kernels.reduce import Shares, sum_tiles
from loraplex.kernels.routing import Routing, Segment
from loraplex.kernels.tape import Tape


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("heights", [(8, 64), (128, 8)])
def test_each_adapters_own_tiles_are_added_up(heights: tuple[int, int], add: bool, device: str) -> None:
    # adapter 0 owns 2 runs, adapter 1 none, adapter 2 one of 300 rows: 38 tiles of 8
    routing = Routing.build(
        num_rows=400,
        segments=[
            Segment(first_row=first, num_rows=rows, adapter=adapter)
            for first, rows, adapter in ((0, 20, 0), (20, 300, 2), (330, 30, 0))
        ],
        scaling=[1.0] * 3, dropout=[0.0] * 3, seeds=[0] * 3, global_batches=[0] * 3, device=device,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 7), (33, 130))
    shares, sums = [], []
    for height, shape in zip(heights, shapes, strict=True):
        tiles = routing.tiles(height)
        parts = torch.randn(tiles.num_owned, *shape, generator=generator).to(device)
        shares.append(Shares(parts=parts, tiles=tiles))
        sums.append(torch.full((3, *shape), 2.0 if add else float("nan"), device=device))
    inputs = [shares[0].parts, shares[1].parts, *sums]
    tape = Tape(inputs, num_words=0, device=routing.device)
    sum_tiles(tape, (shares[0], shares[1]), (sums[0], sums[1]), add=add)
    for share, found in zip(shares, sums, strict=True):
        owners = share.tiles.table[: share.tiles.num_owned, 2]
        own = [share.parts[owners == adapter].double().sum(dim=0) for adapter in range(3)]
        torch.testing.assert_close(found, (torch.stack(own) + (2.0 if add else 0.0)).float(), rtol=1e-5, atol=1e-5)
        assert (found[1] == (2.0 if add else 0.0)).all()
