# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The forward passes beside the frozen product: S = scale * dropout(x) A^T, and y = bias + S B^T before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .draws import draw_words, keep_high, keep_low, locate, row_keys
from .layout import Layout
from .reduce import sum_splits
from .routing import Routing
from .tiles import can_use_tma, load_tile, tile_source


@triton.jit(do_not_specialize=["target_word"])
def shrink_kernel(
    x_source, a_source, s_ptr, table_ptr, words_ptr, threshold_ptr, scale_ptr, token_index_ptr,
    num_rows, stride_x, target_word,
    K: tl.constexpr, C: tl.constexpr, FIRST_C: tl.constexpr, END_C: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, SPLITS: tl.constexpr, DROPOUT: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """S `[T, C]` of one row tile, columns FIRST_C to END_C; with SPLITS > 1 a float32 share of K, `[SPLITS, T, C]`."""
    i_tile, i_c, i_split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_row = tl.load(table_ptr + 4 * i_tile)
    end_row = tl.load(table_ptr + 4 * i_tile + 1)
    adapter = tl.load(table_ptr + 4 * i_tile + 2)
    # [BM], [BC], [64]
    o_row = first_row + tl.arange(0, BM)
    m_row = o_row < end_row
    first_c = FIRST_C + i_c * BC
    o_c = first_c + tl.arange(0, BC)
    o_half = tl.arange(0, 64)
    word_0 = tl.load(words_ptr + 2 * adapter)
    word_1 = tl.load(words_ptr + 2 * adapter + 1)
    key_0, key_1 = row_keys(word_0, word_1, token_index_ptr, o_row, m_row, target_word)
    threshold = tl.load(threshold_ptr + adapter)
    row_a, end_a = adapter * C + first_c, adapter * C + END_C
    BLOCKS: tl.constexpr = (K + 127) // 128
    SHARE: tl.constexpr = (BLOCKS + SPLITS - 1) // SPLITS
    # [BM, BC]
    acc = tl.zeros((BM, BC), tl.float32)
    for block in range(i_split * SHARE, tl.minimum((i_split + 1) * SHARE, BLOCKS)):
        low = block * 128
        # [BM, 64] twice, [BC, 64] twice; rows past the tile's end and columns past END_C are computed, not stored
        x_low = load_tile(x_source, stride_x, first_row, end_row, low, K, BM, 64, TMA, True)
        x_high = load_tile(x_source, stride_x, first_row, end_row, low + 64, K, BM, 64, TMA, True)
        a_low = load_tile(a_source, K, row_a, end_a, low, K, BC, 64, TMA, True)
        a_high = load_tile(a_source, K, row_a, end_a, low + 64, K, BC, 64, TMA, True)
        if DROPOUT:
            word = draw_words(key_0, key_1, block * 64 + o_half)
            x_low = tl.where(keep_low(word, threshold), x_low, 0.0)
            x_high = tl.where(keep_high(word, threshold), x_high, 0.0)
        acc = tl.dot(x_low, tl.trans(a_low), acc, input_precision="ieee")
        acc = tl.dot(x_high, tl.trans(a_high), acc, input_precision="ieee")
    if SPLITS == 1:
        acc = acc * tl.load(scale_ptr + adapter)
    p_s = s_ptr + (i_split.to(tl.int64) * num_rows + o_row)[:, None] * C + o_c[None, :]
    tl.store(p_s, acc.to(s_ptr.dtype.element_ty), mask=m_row[:, None] & (o_c < END_C)[None, :])


@triton.jit
def expand_kernel(
    s_ptr, b_ptr, bias_ptr, y_ptr, table_ptr, stride_y, n_1, n_2, n_3, n_4,
    C: tl.constexpr, R: tl.constexpr, HAS_BIAS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """y `[T, N]` = bias + S B^T of one row tile and one column block; a tile of no adapter gets the bias alone."""
    i_tile, i_n = tl.program_id(0), tl.program_id(1)
    first_row = tl.load(table_ptr + 4 * i_tile)
    end_row = tl.load(table_ptr + 4 * i_tile + 1)
    adapter = tl.load(table_ptr + 4 * i_tile + 2)
    target, start, end = locate(i_n, n_1, n_2, n_3, n_4, BN)
    # [BM], [BN], [BR]
    o_row = first_row + tl.arange(0, BM)
    m_row = o_row < end_row
    o_n = start + tl.arange(0, BN)
    m_n = o_n < end
    o_r = tl.arange(0, BR)
    # [BM, BN]
    acc = tl.zeros((BM, BN), tl.float32)
    if adapter >= 0:
        for r in range(0, R, BR):
            # [BM, BR], [BN, BR]
            p_s = s_ptr + o_row.to(tl.int64)[:, None] * C + (target * R + r + o_r)[None, :]
            s = tl.load(p_s, mask=m_row[:, None], other=0.0)
            p_b = b_ptr + (adapter.to(tl.int64) * n_4 + o_n)[:, None] * R + (r + o_r)[None, :]
            b = tl.load(p_b, mask=m_n[:, None], other=0.0)
            acc = tl.dot(s, tl.trans(b), acc, input_precision="ieee")
    if HAS_BIAS:
        acc += tl.load(bias_ptr + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    p_y = y_ptr + o_row.to(tl.int64)[:, None] * stride_y + o_n[None, :]
    tl.store(p_y, acc.to(y_ptr.dtype.element_ty), mask=m_row[:, None] & m_n[None, :])


def shrink(x: Tensor, a: Tensor, *, layout: Layout, routing: Routing, targets: Sequence[int]) -> Tensor:
    """S `[T, C]` in the dtype of `x`, from `x [T, K]` and the packed `a [adapters, C, K]`."""
    config = layout.config.shrink
    tiles = routing.tiles(config.rows)
    splits = layout.shrink_splits(tiles.num_owned)
    num_rows, k = x.shape
    shape = (num_rows, layout.columns) if splits == 1 else (splits, num_rows, layout.columns)
    s = torch.empty(shape, dtype=x.dtype if splits == 1 else torch.float32, device=x.device)
    tma = config.tma and can_use_tma(x, a[0])
    x_source, rows_a = tile_source(x, (config.rows, 64), tma=tma), a.view(-1, k)
    for mask_class in layout.mask_classes(targets, has_dropout=routing.has_dropout):
        first, end = mask_class.first_column, mask_class.end_column
        width = min(triton.next_power_of_2(end - first), config.columns)
        shrink_kernel[(tiles.num_owned, triton.cdiv(end - first, width), splits)](
            x_source, tile_source(rows_a, (width, 64), tma=tma), s, tiles.table, routing.words, routing.thresholds, routing.branch_scale, routing.token_index,
            num_rows, x.stride(0), target_word(mask_class.target),
            K=k, C=layout.columns, FIRST_C=first, END_C=end, BM=config.rows, BC=width, SPLITS=splits,
            DROPOUT=routing.has_dropout, TMA=tma, num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
    if splits == 1:
        return s
    return sum_splits(s, layout=layout, routing=routing, dtype=x.dtype, part_ends=(splits,))


def expand(y: Tensor, s: Tensor, b: Tensor, bias: Tensor | None, *, layout: Layout, routing: Routing) -> None:
    """Write `y [T, N]` = bias + S B^T, so that the frozen product can be added by the library's own GEMM."""
    config = layout.config.expand
    tiles = routing.tiles(config.rows)
    expand_kernel[(tiles.num_tiles, layout.chunk_ends(config.columns)[-1])](
        s, b, b if bias is None else bias, y, tiles.table, y.stride(0), *layout.borders,
        C=layout.columns, R=layout.padded_rank, HAS_BIAS=bias is not None,
        BM=config.rows, BN=config.columns, BR=min(layout.padded_rank, 64),
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


def target_word(target: int) -> int:
    """The target's part of the dropout key, as a signed 32-bit number (`reference._draw`)."""
    word = (target * 0x9E3779B9 + 0x7F4A7C15) & 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word
