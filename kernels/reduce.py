# ruff: noqa: N803 (capital dimension names, as in the formulas)
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Second stage of the split reductions: shares are added in a fixed order, so the same call gives the same bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .routing import Tiles
from .sizes import ceil_div, next_power_of_2
from .tape import Tape

SUM_ELEMENTS = 2048
"""Of all its tiles that a program holds: 16 registers a thread."""


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
    parts_0_ptr, grad_0_ptr, ranges_0_ptr, size_0, parts_1_ptr, grad_1_ptr, ranges_1_ptr, size_1, num_blocks_0,
    ADD: tl.constexpr, TILES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Two gradients `[adapters, size]`: each adapter's own shares of `[tiles, size]` added (ADD: to what is there)."""
    i_block, i_range = tl.program_id(0), tl.program_id(1)
    if i_block < num_blocks_0:
        sum_block(parts_0_ptr, grad_0_ptr, ranges_0_ptr, size_0, i_block, i_range, ADD, TILES, BLOCK)
    else:
        sum_block(parts_1_ptr, grad_1_ptr, ranges_1_ptr, size_1, i_block - num_blocks_0, i_range, ADD, TILES, BLOCK)


@triton.jit
def sum_block(
    parts_ptr, grad_ptr, ranges_ptr, size, i_block, i_range,
    ADD: tl.constexpr, TILES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one adapter's gradient."""
    adapter = tl.load(ranges_ptr + 4 * i_range)
    first = tl.load(ranges_ptr + 4 * i_range + 1)
    end = tl.load(ranges_ptr + 4 * i_range + 2)
    # [TILES], [BLOCK]
    o_tile = tl.arange(0, TILES)
    offset = i_block * BLOCK + tl.arange(0, BLOCK)
    mask = offset < size
    if ADD:
        # in a bucket there are programs for adapters without tiles, too
        mask &= first < end
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """A gradient's shares, one for each row tile, float32 `[tiles, ...]`."""

    parts: Tensor
    tiles: Tiles


def sum_splits(tape: Tape, parts: Tensor, *, dtype: torch.dtype) -> Tensor:
    """`[T, C]` from its shares `[splits, T, C]`, a power of two of them; rows nobody wrote stay whatever they are."""
    s = tape.empty(tuple(parts.shape[1:]), dtype)
    tape.launch(
        sum_splits_kernel, (ceil_div(s.numel(), 512),), parts, s, s.numel(),
        constants={"SPLITS": parts.shape[0], "BLOCK": 512}, options={},
    )  # fmt: skip
    return s


def empty_sums(
    tape: Tape, shares: tuple[Shares, Shares], *, num_adapters: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Room for both gradients `[num_adapters, ...]`."""
    first, second = (tape.empty((num_adapters, *share.parts.shape[1:]), dtype) for share in shares)
    return first, second


def sum_tiles(tape: Tape, shares: tuple[Shares, Shares], sums: tuple[Tensor, Tensor], *, add: bool) -> None:
    """Gradients `[num_adapters, ...]` from the row tiles' shares `[num_tiles, ...]`, two of them in one launch.

    Zero for an adapter without rows. With `add` they are added to what `sums` hold, and what belongs to an adapter
    without rows is neither read nor written.
    """
    parts = tuple(share.parts for share in shares)
    sizes = [part[0].numel() for part in parts]
    # as many tiles at once as an adapter has at most: all loads of a program in flight, and none of them masked
    num_tiles = min(16, next_power_of_2(max(share.tiles.most_tiles for share in shares)))
    block = SUM_ELEMENTS // num_tiles
    num_blocks = [ceil_div(size, block) for size in sizes]
    num_ranges = shares[0].tiles.num_owners if add else sums[0].shape[0]
    tape.launch(
        sum_tiles_kernel, (sum(num_blocks), num_ranges),
        parts[0], sums[0], tape.fixed(shares[0].tiles.ranges), sizes[0],
        parts[1], sums[1], tape.fixed(shares[1].tiles.ranges), sizes[1], num_blocks[0],
        constants={"ADD": add, "TILES": num_tiles, "BLOCK": block}, options={"num_warps": 4},
    )  # fmt: skip
