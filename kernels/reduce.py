# ruff: noqa: N803 (capital dimension names, as in the formulas)
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Second stage of the split reductions: shares are added in a fixed order, so the same call gives the same bits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .routing import Tiles


@triton.jit
def sum_splits_kernel(parts_ptr, s_ptr, size, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """`[size]` from `[SPLITS, size]`."""
    # [BLOCK], [SPLITS]
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    o_split = tl.arange(0, SPLITS).to(tl.int64)
    parts = tl.load(parts_ptr + o_split[:, None] * size + offset[None, :], mask=(offset < size)[None, :], other=0.0)
    tl.store(s_ptr + offset, tl.sum(parts, axis=0).to(s_ptr.dtype.element_ty), mask=offset < size)


@triton.jit
def sum_tiles_kernel(
    parts_ptr, grad_ptr, ranges_ptr, size, ADD: tl.constexpr, TILES: tl.constexpr, BLOCK: tl.constexpr
):
    """`[adapters, size]`: each adapter's own shares of `[tiles, size]` added, with ADD to what stands there."""
    i_block, i_range = tl.program_id(0), tl.program_id(1)
    adapter = tl.load(ranges_ptr + 4 * i_range)
    first = tl.load(ranges_ptr + 4 * i_range + 1)
    end = tl.load(ranges_ptr + 4 * i_range + 2)
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
    total = tl.sum(acc, axis=0)
    if ADD:
        total += tl.load(p_grad, mask=mask, other=0.0)
    tl.store(p_grad, total.to(grad_ptr.dtype.element_ty), mask=mask)


def sum_splits(parts: Tensor, *, dtype: torch.dtype) -> Tensor:
    """`[T, C]` from its shares `[splits, T, C]`, a power of two of them; rows nobody wrote stay whatever they are."""
    s = torch.empty(parts.shape[1:], dtype=dtype, device=parts.device)
    sum_splits_kernel[(triton.cdiv(s.numel(), 512),)](parts, s, s.numel(), SPLITS=parts.shape[0], BLOCK=512)
    return s


def sum_tiles(parts: Tensor, *, tiles: Tiles, num_adapters: int, dtype: torch.dtype, sums: Tensor | None) -> Tensor:
    """Gradients `[num_adapters, ...]` from the row tiles' shares `[num_tiles, ...]`, zero for an adapter without rows.

    Where `sums`, float32 of that shape, is given, they are added to it instead, and what belongs to an adapter without
    rows is neither read nor written.
    """
    grad = sums
    if grad is None:
        grad = torch.empty((num_adapters, *parts.shape[1:]), dtype=dtype, device=parts.device)
    size = parts[0].numel()
    block = 128
    num_ranges = num_adapters if sums is None else tiles.num_owners
    sum_tiles_kernel[(triton.cdiv(size, block), num_ranges)](
        parts, grad, tiles.ranges, size, ADD=sums is not None, TILES=16, BLOCK=block, num_warps=4
    )
    return grad
