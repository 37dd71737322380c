# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Second stage of the split reductions: shares are added in a fixed order, so the same call gives the same bits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layout import Layout
from .routing import Routing, Tiles


@triton.jit
def sum_splits_kernel(
    parts_ptr, s_ptr, table_ptr, scale_ptr, num_rows, e_1, e_2, e_3, e_4,
    WIDTH: tl.constexpr, C: tl.constexpr, BM: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """S `[T, C]`, columns of one target: its parts of `[parts, T, WIDTH]` added and multiplied with the branch scale."""
    i_tile, target, i_w = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_row = tl.load(table_ptr + 4 * i_tile)
    end_row = tl.load(table_ptr + 4 * i_tile + 1)
    adapter = tl.load(table_ptr + 4 * i_tile + 2)
    first_part = tl.where(target == 0, 0, tl.where(target == 1, e_1, tl.where(target == 2, e_2, e_3)))
    end_part = tl.where(target == 0, e_1, tl.where(target == 1, e_2, tl.where(target == 2, e_3, e_4)))
    # [BM], [BW]
    o_row = first_row + tl.arange(0, BM)
    o_w = i_w * BW + tl.arange(0, BW)
    # [BM, BW]
    mask = (o_row < end_row)[:, None] & (o_w < WIDTH)[None, :]
    acc = tl.zeros((BM, BW), tl.float32)
    p_part = parts_ptr + (first_part.to(tl.int64) * num_rows + o_row)[:, None] * WIDTH + o_w[None, :]
    for _ in range(first_part, end_part):
        acc += tl.load(p_part, mask=mask, other=0.0)
        p_part += num_rows * WIDTH
    acc = acc * tl.load(scale_ptr + adapter)
    p_s = s_ptr + o_row.to(tl.int64)[:, None] * C + (target * WIDTH + o_w)[None, :]
    tl.store(p_s, acc.to(s_ptr.dtype.element_ty), mask=mask)


@triton.jit
def sum_tiles_kernel(parts_ptr, grad_ptr, ranges_ptr, size, TILES: tl.constexpr, BLOCK: tl.constexpr):
    """`[adapters, size]`: each adapter's own shares of `[tiles, size]` added; zero for an adapter without rows."""
    i_block, adapter = tl.program_id(0), tl.program_id(1)
    first = tl.load(ranges_ptr + 2 * adapter)
    end = tl.load(ranges_ptr + 2 * adapter + 1)
    # [TILES], [BLOCK]
    o_tile = tl.arange(0, TILES)
    offset = i_block * BLOCK + tl.arange(0, BLOCK)
    mask = offset < size
    # [TILES, BLOCK]: many loads in flight, one addition each
    acc = tl.zeros((TILES, BLOCK), tl.float32)
    p_part = parts_ptr + (first + o_tile).to(tl.int64)[:, None] * size + offset[None, :]
    for tile in range(first, end, TILES):
        acc += tl.load(p_part, mask=(tile + o_tile < end)[:, None] & mask[None, :], other=0.0)
        p_part += TILES * size
    p_grad = grad_ptr + adapter.to(tl.int64) * size + offset
    tl.store(p_grad, tl.sum(acc, axis=0).to(grad_ptr.dtype.element_ty), mask=mask)


def sum_splits(
    parts: Tensor, *, layout: Layout, routing: Routing, dtype: torch.dtype, part_ends: tuple[int, ...]
) -> Tensor:
    """S `[T, C]` from parts `[num_parts, T, width]`; `part_ends[t]` is where the parts of target t end."""
    _, num_rows, width = parts.shape
    block = min(triton.next_power_of_2(width), 64)
    tiles = routing.tiles(layout.config.expand.rows)
    s = torch.empty((num_rows, layout.columns), dtype=dtype, device=parts.device)
    ends = (*part_ends, *part_ends[-1:] * (4 - len(part_ends)))
    sum_splits_kernel[(tiles.num_owned, len(part_ends), triton.cdiv(width, block))](
        parts, s, tiles.table, routing.branch_scale, num_rows, *ends,
        WIDTH=width, C=layout.columns, BM=tiles.height, BW=block, num_warps=4,
    )  # fmt: skip
    return s


def sum_tiles(parts: Tensor, *, tiles: Tiles, num_adapters: int, dtype: torch.dtype) -> Tensor:
    """Gradients `[num_adapters, ...]` from the row tiles' shares `[num_tiles, ...]`."""
    grad = torch.empty((num_adapters, *parts.shape[1:]), dtype=dtype, device=parts.device)
    size = grad[0].numel()
    block = 128
    sum_tiles_kernel[(triton.cdiv(size, block), num_adapters)](
        parts, grad, tiles.ranges, size, TILES=16, BLOCK=block, num_warps=4
    )
    return grad
