# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The backward passes beside the frozen product.

`output_grad` reads dy once for dS = scale * dy B and dB = dy^T S; `input_grad` reads x once for dA = dS^T (mask * x)
and writes mask * (dS A), to which the library's GEMM adds dy W. The mask is drawn again, never stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .draws import draw_words, keep_high, keep_low, locate, row_keys
from .forward import target_word
from .layout import Layout
from .reduce import sum_splits, sum_tiles
from .routing import Routing
from .tiles import can_use_tma, load_tile, tile_source


@triton.jit
def output_grad_kernel(
    dy_source, s_ptr, b_ptr, ds_ptr, db_ptr, table_ptr, num_rows, stride_dy, n_1, n_2, n_3, n_4,
    C: tl.constexpr, R: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr, CHUNK: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """One row tile and CHUNK columns of dy: a share of dS `[chunks, T, R]` and of dB `[tiles, N, R]`, both float32."""
    i_tile, i_chunk, i_r = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_row = tl.load(table_ptr + 4 * i_tile)
    end_row = tl.load(table_ptr + 4 * i_tile + 1)
    adapter = tl.load(table_ptr + 4 * i_tile + 2)
    target, start, end = locate(i_chunk, n_1, n_2, n_3, n_4, CHUNK)
    # [BM], [BR]
    o_row = first_row + tl.arange(0, BM)
    m_row = o_row < end_row
    o_r = i_r * BR + tl.arange(0, BR)
    # [BM, BR]
    p_s = s_ptr + o_row.to(tl.int64)[:, None] * C + (target * R + o_r)[None, :]
    s = tl.load(p_s, mask=m_row[:, None], other=0.0)
    # [BN, BR]
    o_block = tl.arange(0, BN)[:, None] * R + o_r[None, :]
    p_b = b_ptr + (adapter.to(tl.int64) * n_4 + start) * R + o_block
    p_db = db_ptr + (i_tile.to(tl.int64) * n_4 + start) * R + o_block
    # [BM, BR]
    ds = tl.zeros((BM, BR), tl.float32)
    if end_row - first_row == BM:
        for column in range(start, end, BN):
            dy = load_tile(dy_source, stride_dy, first_row, end_row, column, end, BM, BN, TMA, True)
            ds = output_grad_step(dy, s, ds, p_b, p_db, column, end, BN)
            p_b += BN * R
            p_db += BN * R
    else:
        for column in range(start, end, BN):
            dy = load_tile(dy_source, stride_dy, first_row, end_row, column, end, BM, BN, TMA, False)
            ds = output_grad_step(dy, s, ds, p_b, p_db, column, end, BN)
            p_b += BN * R
            p_db += BN * R
    p_ds = ds_ptr + (i_chunk.to(tl.int64) * num_rows + o_row)[:, None] * R + o_r[None, :]
    tl.store(p_ds, ds, mask=m_row[:, None])


@triton.jit
def output_grad_step(dy, s, ds, p_b, p_db, column, end, BN: tl.constexpr):
    """Both products of one dy `[BM, BN]`: dS + dy B, and dB = dy^T S stored."""
    # [BN, 1]
    m_n = (column + tl.arange(0, BN) < end)[:, None]
    b = tl.load(p_b, mask=m_n, other=0.0)
    ds = tl.dot(dy, b, ds, input_precision="ieee")
    tl.store(p_db, tl.dot(tl.trans(dy), s, input_precision="ieee"), mask=m_n)
    return ds


@triton.jit(do_not_specialize=["target_word"])
def input_grad_kernel(
    x_source, a_ptr, ds_ptr, dx_ptr, da_ptr, table_ptr, words_ptr, threshold_ptr, token_index_ptr, stride_x, target_word,
    K: tl.constexpr, C: tl.constexpr, FIRST_C: tl.constexpr, END_C: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, DROPOUT: tl.constexpr, WRITE_DX: tl.constexpr, ADD_DX: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """128 columns of a chunk of rows: a share of dA `[chunks, C, K]`, and mask * (dS A) into dx `[T, K]`."""
    i_k, i_tile = tl.program_id(0), tl.program_id(1)
    first_row = tl.load(table_ptr + 4 * i_tile)
    end_row = tl.load(table_ptr + 4 * i_tile + 1)
    adapter = tl.load(table_ptr + 4 * i_tile + 2)
    # [64], [BC]
    o_half = tl.arange(0, 64)
    o_low = i_k * 128 + o_half
    o_high = o_low + 64
    o_c = FIRST_C + tl.arange(0, BC)
    m_c = o_c < END_C
    if adapter >= 0:
        threshold = tl.load(threshold_ptr + adapter)
        word_0 = tl.load(words_ptr + 2 * adapter)
        word_1 = tl.load(words_ptr + 2 * adapter + 1)
        # [BC, 64] twice
        p_a = a_ptr + (adapter * C + o_c).to(tl.int64)[:, None] * K
        a_low = tl.load(p_a + o_low[None, :], mask=m_c[:, None] & (o_low < K)[None, :], other=0.0)
        a_high = tl.load(p_a + o_high[None, :], mask=m_c[:, None] & (o_high < K)[None, :], other=0.0)
        # [64, BC] twice: dA transposed, so that the long side fills the tensor cores
        da_low = tl.zeros((64, BC), tl.float32)
        da_high = tl.zeros((64, BC), tl.float32)
        end_whole = first_row + (end_row - first_row) // BM * BM
        for row in range(first_row, end_whole, BM):
            da_low, da_high = input_grad_step(
                x_source, ds_ptr, dx_ptr, token_index_ptr, word_0, word_1, threshold, target_word, stride_x,
                row, end_row, i_k, a_low, a_high, da_low, da_high, o_c, m_c,
                K, C, BM, DROPOUT, WRITE_DX, ADD_DX, TMA, True,
            )  # fmt: skip
        if end_whole < end_row:
            da_low, da_high = input_grad_step(
                x_source, ds_ptr, dx_ptr, token_index_ptr, word_0, word_1, threshold, target_word, stride_x,
                end_whole, end_row, i_k, a_low, a_high, da_low, da_high, o_c, m_c,
                K, C, BM, DROPOUT, WRITE_DX, ADD_DX, TMA, False,
            )  # fmt: skip
        p_da = da_ptr + (i_tile * C + o_c).to(tl.int64)[None, :] * K
        tl.store(p_da + o_low[:, None], da_low, mask=(o_low < K)[:, None] & m_c[None, :])
        tl.store(p_da + o_high[:, None], da_high, mask=(o_high < K)[:, None] & m_c[None, :])
    elif WRITE_DX and not ADD_DX:
        zero = tl.zeros((BM, 64), dx_ptr.dtype.element_ty)
        for row in range(first_row, end_row, BM):
            o_row = row + tl.arange(0, BM)
            p_dx = dx_ptr + o_row.to(tl.int64)[:, None] * K
            tl.store(p_dx + o_low[None, :], zero, mask=(o_row < end_row)[:, None] & (o_low < K)[None, :])
            tl.store(p_dx + o_high[None, :], zero, mask=(o_row < end_row)[:, None] & (o_high < K)[None, :])


@triton.jit
def input_grad_step(
    x_source, ds_ptr, dx_ptr, token_index_ptr, word_0, word_1, threshold, target_word, stride_x,
    row, end_row, i_k, a_low, a_high, da_low, da_high, o_c, m_c,
    K: tl.constexpr, C: tl.constexpr, BM: tl.constexpr,
    DROPOUT: tl.constexpr, WRITE_DX: tl.constexpr, ADD_DX: tl.constexpr, TMA: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """BM rows: dA + (mask * x)^T dS, and mask * (dS A) stored."""
    # [BM], [64]
    o_row = row + tl.arange(0, BM)
    m_row = o_row < end_row
    o_half = tl.arange(0, 64)
    low = i_k * 128
    # [BM, 64] twice, [BM, BC]
    x_low = load_tile(x_source, stride_x, row, end_row, low, K, BM, 64, TMA, WHOLE)
    x_high = load_tile(x_source, stride_x, row, end_row, low + 64, K, BM, 64, TMA, WHOLE)
    p_ds = ds_ptr + o_row.to(tl.int64)[:, None] * C + o_c[None, :]
    ds = tl.load(p_ds, mask=m_row[:, None] & m_c[None, :], other=0.0)
    if WRITE_DX:
        dx_low = tl.dot(ds, a_low, input_precision="ieee")
        dx_high = tl.dot(ds, a_high, input_precision="ieee")
    if DROPOUT:
        key_0, key_1 = row_keys(word_0, word_1, token_index_ptr, o_row, m_row, target_word)
        word = draw_words(key_0, key_1, i_k * 64 + o_half)
        keep_0, keep_1 = keep_low(word, threshold), keep_high(word, threshold)
        if WRITE_DX:
            # joined, so that x and dx meet the mask in one register layout and the words are drawn once, not twice
            low_pair = tl.where(keep_0[:, :, None], tl.join(x_low, dx_low.to(x_low.dtype)), 0.0)
            high_pair = tl.where(keep_1[:, :, None], tl.join(x_high, dx_high.to(x_high.dtype)), 0.0)
            x_low, dx_low = tl.split(low_pair)
            x_high, dx_high = tl.split(high_pair)
        else:
            x_low = tl.where(keep_0, x_low, 0.0)
            x_high = tl.where(keep_1, x_high, 0.0)
    if WRITE_DX:
        o_low = low + o_half
        p_dx = dx_ptr + o_row.to(tl.int64)[:, None] * K + o_low[None, :]
        m_low = m_row[:, None] & (o_low < K)[None, :]
        m_high = m_row[:, None] & (o_low + 64 < K)[None, :]
        if ADD_DX:
            dx_low += tl.load(p_dx, mask=m_low, other=0.0)
            dx_high += tl.load(p_dx + 64, mask=m_high, other=0.0)
        tl.store(p_dx, dx_low.to(dx_ptr.dtype.element_ty), mask=m_low)
        tl.store(p_dx + 64, dx_high.to(dx_ptr.dtype.element_ty), mask=m_high)
    da_low = tl.dot(tl.trans(x_low), ds, da_low, input_precision="ieee")
    da_high = tl.dot(tl.trans(x_high), ds, da_high, input_precision="ieee")
    return da_low, da_high


def output_grad(
    dy: Tensor, s: Tensor, b: Tensor, *, layout: Layout, routing: Routing, grad_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(dS `[T, C]` in the dtype of dy, dB `[adapters, N, R]`) from `dy [T, N]`, S and the packed B."""
    config = layout.config.output_grad
    tiles = routing.tiles(config.rows)
    num_rows, r = dy.shape[0], layout.padded_rank
    chunk = layout.output_grad_chunk(tiles.num_owned)
    ends = layout.chunk_ends(chunk)
    block_r = min(r, 64)
    ds_parts = torch.empty((ends[-1], num_rows, r), dtype=torch.float32, device=dy.device)
    db_parts = torch.empty((tiles.num_owned, layout.total_out_features, r), dtype=torch.float32, device=dy.device)
    # a TMA tile runs on into the next target's columns, so every border must be a block's border
    tma = config.tma and can_use_tma(dy) and all(end % config.columns == 0 for end in layout.borders)
    dy_source = tile_source(dy, (config.rows, config.columns), tma=tma)
    output_grad_kernel[(tiles.num_owned, ends[-1], r // block_r)](
        dy_source, s, b, ds_parts, db_parts, tiles.table, num_rows, dy.stride(0), *layout.borders,
        C=layout.columns, R=r, BM=config.rows, BN=config.columns, BR=block_r, CHUNK=chunk, TMA=tma,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    ds = sum_splits(ds_parts, layout=layout, routing=routing, dtype=dy.dtype, part_ends=ends)
    return ds, sum_tiles(db_parts, tiles=tiles, num_adapters=layout.num_adapters, dtype=grad_dtype)


def input_grad(
    x: Tensor, ds: Tensor, a: Tensor, *, layout: Layout, routing: Routing, targets: Sequence[int],
    grad_dtype: torch.dtype, needs_dx: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(dA `[adapters, C, K]`, dx `[T, K]` holding mask * (dS A)); dx stays unwritten unless `needs_dx`."""
    config = layout.config.input_grad
    tiles = routing.tiles(layout.config.input_grad_rows)
    k = x.shape[1]
    dx = torch.empty((x.shape[0] if needs_dx else 0, k), dtype=x.dtype, device=x.device)
    parts = torch.empty((tiles.num_owned, layout.columns, k), dtype=torch.float32, device=x.device)
    num_tiles = tiles.num_tiles if needs_dx else tiles.num_owned
    written = False
    tma = config.tma and can_use_tma(x)
    x_source = tile_source(x, (config.rows, 64), tma=tma)
    for mask_class in layout.mask_classes(targets, has_dropout=routing.has_dropout):
        width = mask_class.end_column - mask_class.first_column
        block = min(triton.next_power_of_2(width), 64)
        for first in range(mask_class.first_column, mask_class.end_column, block):
            input_grad_kernel[(triton.cdiv(k, 128), num_tiles)](
                x_source, a, ds, dx, parts, tiles.table, routing.words, routing.thresholds, routing.token_index,
                x.stride(0), target_word(mask_class.target),
                K=k, C=layout.columns, FIRST_C=first, END_C=min(first + block, mask_class.end_column),
                BM=config.rows, BC=block, DROPOUT=routing.has_dropout, WRITE_DX=needs_dx, ADD_DX=written, TMA=tma,
                num_warps=config.num_warps, num_stages=config.num_stages,
            )  # fmt: skip
            written = True
    return sum_tiles(parts, tiles=tiles, num_adapters=layout.num_adapters, dtype=grad_dtype), dx
