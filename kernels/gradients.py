# ruff: noqa: N803 (capital dimension names, as in the formulas)
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The adapters' gradients: dA = dS^T (mask * x) and dB = dy^T S, one pass over x and one over dy.

With dropout the pass over x also writes mask * (dS A), to which the library's GEMM adds dy W: the mask is drawn again,
once for both uses, and never stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .draws import draw_words, keep_high, keep_low, locate, row_keys
from .layout import Layout
from .reduce import Shares
from .routing import Routing
from .sizes import ceil_div, next_power_of_2
from .tape import Tape
from .tiles import can_use_tma, load_tile, tile_source

REGISTERS_BESIDE = 112
"""A thread's registers that let 4 warps live beside the product that draws dropout (which takes `gemm.MASKED_REGISTERS`
times 256 threads of 65,536); unbounded, a pass of three targets takes 135 and waits until the product ends (sm_90)."""


@triton.jit(do_not_specialize=["target_word"])
def gradient_kernel(
    x_source, a_ptr, ds_ptr, dx_ptr, da_ptr, table_ptr, words_ptr, threshold_ptr, token_index_ptr,
    stride_x, target_word, n_1, n_2, n_3, n_4, stride_part, stride_k, stride_c,
    C: tl.constexpr, ROWS_A: tl.constexpr, R: tl.constexpr, FIRST_C: tl.constexpr, END_C: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, DROPOUT: tl.constexpr, WRITE_DX: tl.constexpr, ADD_DX: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """128 columns of a chunk of rows: a share of dA `[chunks, K, C]` (strided), and mask * (dS A) into dx `[T, K]`.

    The same product gives dB from dy and S, where a target's columns of dy meet its own R columns of S.
    """
    gradient_tile(
        tl.program_id(0), tl.program_id(1),
        x_source, a_ptr, ds_ptr, dx_ptr, da_ptr, table_ptr, words_ptr, threshold_ptr, token_index_ptr,
        stride_x, target_word, n_1, n_2, n_3, n_4, stride_part, stride_k, stride_c,
        C, ROWS_A, R, FIRST_C, END_C, BM, BC, DROPOUT, WRITE_DX, ADD_DX, TMA,
    )  # fmt: skip


@triton.jit
def gradient_tile(
    i_k, i_tile, x_source, a_ptr, ds_ptr, dx_ptr, da_ptr, table_ptr, words_ptr, threshold_ptr, token_index_ptr,
    stride_x, target_word, n_1, n_2, n_3, n_4, stride_part, stride_k, stride_c,
    C: tl.constexpr, ROWS_A: tl.constexpr, R: tl.constexpr, FIRST_C: tl.constexpr, END_C: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, DROPOUT: tl.constexpr, WRITE_DX: tl.constexpr, ADD_DX: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """The work of one program of `gradient_kernel`."""
    first_row = tl.load(table_ptr + 4 * i_tile)
    end_row = tl.load(table_ptr + 4 * i_tile + 1)
    adapter = tl.load(table_ptr + 4 * i_tile + 2)
    # [64], [BC]
    o_half = tl.arange(0, 64)
    target, start, end = locate(i_k, n_1, n_2, n_3, n_4, 128)
    o_low = start + o_half
    o_high = o_low + 64
    o_c = FIRST_C + tl.arange(0, BC)
    m_c = o_c < END_C
    if adapter >= 0:
        threshold = tl.load(threshold_ptr + adapter)
        word_0 = tl.load(words_ptr + 2 * adapter)
        word_1 = tl.load(words_ptr + 2 * adapter + 1)
        # [BC, 64] twice
        a_low = 0.0
        a_high = 0.0
        if WRITE_DX:
            p_a = a_ptr + (adapter * ROWS_A + o_c).to(tl.int64)[:, None] * n_4
            a_low = tl.load(p_a + o_low[None, :], mask=m_c[:, None] & (o_low < end)[None, :], other=0.0)
            a_high = tl.load(p_a + o_high[None, :], mask=m_c[:, None] & (o_high < end)[None, :], other=0.0)
        # [64, BC] twice: dA transposed, so that the long side fills the tensor cores
        da_low = tl.zeros((64, BC), tl.float32)
        da_high = tl.zeros((64, BC), tl.float32)
        end_whole = first_row + (end_row - first_row) // BM * BM
        for row in range(first_row, end_whole, BM):
            da_low, da_high = gradient_step(
                x_source, ds_ptr, dx_ptr, token_index_ptr, word_0, word_1, threshold, target_word, stride_x,
                row, end_row, start, end, n_4, a_low, a_high, da_low, da_high, target * R + o_c, m_c,
                C, BM, DROPOUT, WRITE_DX, ADD_DX, TMA, True,
            )  # fmt: skip
        if end_whole < end_row:
            da_low, da_high = gradient_step(
                x_source, ds_ptr, dx_ptr, token_index_ptr, word_0, word_1, threshold, target_word, stride_x,
                end_whole, end_row, start, end, n_4, a_low, a_high, da_low, da_high, target * R + o_c, m_c,
                C, BM, DROPOUT, WRITE_DX, ADD_DX, TMA, False,
            )  # fmt: skip
        p_da = da_ptr + i_tile.to(tl.int64) * stride_part + (o_c * stride_c)[None, :]
        tl.store(p_da + (o_low * stride_k)[:, None], da_low, mask=(o_low < end)[:, None] & m_c[None, :])
        tl.store(p_da + (o_high * stride_k)[:, None], da_high, mask=(o_high < end)[:, None] & m_c[None, :])
    elif WRITE_DX and not ADD_DX:
        zero = tl.zeros((BM, 64), dx_ptr.dtype.element_ty)
        for row in range(first_row, end_row, BM):
            o_row = row + tl.arange(0, BM)
            p_dx = dx_ptr + o_row.to(tl.int64)[:, None] * n_4
            tl.store(p_dx + o_low[None, :], zero, mask=(o_row < end_row)[:, None] & (o_low < n_4)[None, :])
            tl.store(p_dx + o_high[None, :], zero, mask=(o_row < end_row)[:, None] & (o_high < n_4)[None, :])


@triton.jit
def gradient_step(
    x_source, ds_ptr, dx_ptr, token_index_ptr, word_0, word_1, threshold, target_word, stride_x,
    row, end_row, low, end, stride_dx, a_low, a_high, da_low, da_high, o_c, m_c,
    C: tl.constexpr, BM: tl.constexpr,
    DROPOUT: tl.constexpr, WRITE_DX: tl.constexpr, ADD_DX: tl.constexpr, TMA: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """BM rows: dA + (mask * x)^T dS, and mask * (dS A) stored."""
    # [BM], [64]
    o_row = row + tl.arange(0, BM)
    m_row = o_row < end_row
    o_half = tl.arange(0, 64)
    # [BM, 64] twice, [BM, BC]
    x_low = load_tile(x_source, stride_x, row, end_row, low, end, BM, 64, TMA, WHOLE)
    x_high = load_tile(x_source, stride_x, row, end_row, low + 64, end, BM, 64, TMA, WHOLE)
    p_ds = ds_ptr + o_row.to(tl.int64)[:, None] * C + o_c[None, :]
    ds = tl.load(p_ds, mask=m_row[:, None] & m_c[None, :], other=0.0)
    if WRITE_DX:
        dx_low = tl.dot(ds, a_low, input_precision="ieee")
        dx_high = tl.dot(ds, a_high, input_precision="ieee")
    if DROPOUT:
        key_0, key_1 = row_keys(word_0, word_1, token_index_ptr, o_row, m_row, target_word)
        word = draw_words(key_0, key_1, low // 2 + o_half)
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
        p_dx = dx_ptr + o_row.to(tl.int64)[:, None] * stride_dx + o_low[None, :]
        m_low = m_row[:, None] & (o_low < end)[None, :]
        m_high = m_row[:, None] & (o_low + 64 < end)[None, :]
        if ADD_DX:
            dx_low += tl.load(p_dx, mask=m_low, other=0.0)
            dx_high += tl.load(p_dx + 64, mask=m_high, other=0.0)
        tl.store(p_dx, dx_low.to(dx_ptr.dtype.element_ty), mask=m_low)
        tl.store(p_dx + 64, dx_high.to(dx_ptr.dtype.element_ty), mask=m_high)
    da_low = tl.dot(tl.trans(x_low), ds, da_low, input_precision="ieee")
    da_high = tl.dot(tl.trans(x_high), ds, da_high, input_precision="ieee")
    return da_low, da_high


def empty_shares(tape: Tape, *, layout: Layout, routing: Routing) -> tuple[Shares, Shares]:
    """Room for the shares of dA `[C, K]` and of dB `[N, R]`."""
    k, n = layout.num_features, layout.total_out_features
    tiles_a, tiles_b = (routing.tiles(layout.gradient_rows(routing.num_rows, width=width)) for width in (k, n))
    parts_a = tape.empty((tiles_a.num_owned, layout.columns, k), torch.float32)
    parts_b = tape.empty((tiles_b.num_owned, n, layout.padded_rank), torch.float32)
    return Shares(parts=parts_a, tiles=tiles_a), Shares(parts=parts_b, tiles=tiles_b)


def input_gradients(
    tape: Tape, shares: Shares, x: Tensor, ds: Tensor, a: Tensor, dx: Tensor | None,
    *, layout: Layout, routing: Routing, targets: Sequence[int],
) -> None:  # fmt: skip
    """Shares of dA; where `dx [T, K]` is given, mask * (dS A) is written into it."""
    config, tiles, parts = layout.config.gradient, shares.tiles, shares.parts
    k, c = x.shape[1], layout.columns
    tma = config.tma and can_use_tma(x)
    num_tiles = tiles.num_owned if dx is None else tiles.num_tiles
    beside = dx is None and routing.has_dropout and layout.config.beside
    written = False
    for mask_class in layout.mask_classes(targets, has_dropout=routing.has_dropout):
        block = min(next_power_of_2(mask_class.end_column - mask_class.first_column), 64)
        for first in range(mask_class.first_column, mask_class.end_column, block):
            tape.launch(
                gradient_kernel, (ceil_div(k, 128), num_tiles),
                tile_source(x, (config.rows, 64), tma=tma), a, ds, x if dx is None else dx, parts,
                tape.fixed(tiles.table), routing.words, routing.thresholds, routing.token_index,
                x.stride(0), tape.words[mask_class.position], k, k, k, k, c * k, 1, k,
                constants={
                    "C": c, "ROWS_A": layout.rows_of_a, "R": 0,
                    "FIRST_C": first, "END_C": min(first + block, mask_class.end_column),
                    "BM": config.rows, "BC": block, "DROPOUT": routing.has_dropout, "WRITE_DX": dx is not None,
                    "ADD_DX": written, "TMA": tma,
                },
                options={
                    "num_warps": config.num_warps, "num_stages": config.num_stages,
                    "maxnreg": REGISTERS_BESIDE if beside else None,
                },
            )  # fmt: skip
            written = True


def output_gradients(tape: Tape, shares: Shares, dy: Tensor, s: Tensor, *, layout: Layout, routing: Routing) -> None:
    """Shares of dB from `dy [T, N]` and S `[T, C]`."""
    config, tiles, parts = layout.config.gradient, shares.tiles, shares.parts
    n, r = layout.total_out_features, layout.padded_rank
    tma = config.tma and can_use_tma(dy)
    block = min(r, 64)
    for first in range(0, r, block):
        tape.launch(
            gradient_kernel, (layout.chunk_ends(128)[-1], tiles.num_owned),
            tile_source(dy, (config.rows, 64), tma=tma), s, s, dy, parts,
            tape.fixed(tiles.table), routing.words, routing.thresholds, routing.token_index,
            dy.stride(0), tape.words[0], *layout.borders, n * r, r, 1,
            constants={
                "C": layout.columns, "ROWS_A": 0, "R": r, "FIRST_C": first, "END_C": first + block,
                "BM": config.rows, "BC": block, "DROPOUT": False, "WRITE_DX": False, "ADD_DX": False, "TMA": tma,
            },
            options={"num_warps": config.num_warps, "num_stages": config.num_stages},
        )  # fmt: skip
