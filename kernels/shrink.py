# ruff: noqa: N803 (capital dimension names, as in the formulas)
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The skinny products: S = scale * dropout(x) A^T before the frozen product, dS = scale * dy B before its gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents

from .draws import draw_words, keep_high, keep_low, row_keys
from .layout import Layout, MaskClass
from .reduce import sum_splits
from .routing import Routing, Tiles
from .sizes import ceil_div, next_power_of_2
from .tape import Tape
from .tiles import can_use_tma, load_tile, tile_source


@triton.jit(do_not_specialize=["target_word"])
def shrink_kernel(
    x_source, m_source, s_ptr, table_ptr, words_ptr, threshold_ptr, scale_ptr, token_index_ptr,
    num_rows, stride_x, target_word, n_1, n_2, n_3, n_4,
    C: tl.constexpr, ROWS_A: tl.constexpr, R: tl.constexpr,
    FIRST_C: tl.constexpr, END_C: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr,
    SPLITS: tl.constexpr,
    BY_TARGET: tl.constexpr, DROPOUT: tl.constexpr, TMA: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """BC columns of S `[T, C]` of one row tile; with SPLITS > 1 a share of the inner sum, float32 `[SPLITS, T, C]`.

    The packed A `[adapters * ROWS_A, K]` meets all columns of x; BY_TARGET, the packed B `[adapters * N, R]` meets
    those columns of dy that belong to its target.
    """
    if EARLY:
        # the product behind this pass may start now: it waits for S before its first store
        gdc_launch_dependents()
    i_tile, i_c, i_split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_row = tl.load(table_ptr + 4 * i_tile)
    end_row = tl.load(table_ptr + 4 * i_tile + 1)
    adapter = tl.load(table_ptr + 4 * i_tile + 2)
    first_c = FIRST_C + i_c * BC
    if BY_TARGET:
        target = first_c // R
        start = tl.where(target == 0, 0, tl.where(target == 1, n_1, tl.where(target == 2, n_2, n_3)))
        end = tl.where(target == 0, n_1, tl.where(target == 1, n_2, tl.where(target == 2, n_3, n_4)))
    else:
        target, start, end = 0, 0, n_4
    # [BM], [BC]
    o_row = first_row + tl.arange(0, BM)
    m_row = o_row < end_row
    o_c = first_c + tl.arange(0, BC)
    # shares are whole blocks of 128, whose features f and f + 64 share a word
    num_blocks = (end - start + 127) // 128
    share = (num_blocks + SPLITS - 1) // SPLITS
    first_block, end_block = i_split * share, tl.minimum((i_split + 1) * share, num_blocks)
    row_m = adapter * n_4 if BY_TARGET else adapter * ROWS_A + first_c
    end_m = row_m + end if BY_TARGET else adapter * ROWS_A + END_C
    # [BM, BC]
    acc = tl.zeros((BM, BC), tl.float32)
    if DROPOUT:
        threshold = tl.load(threshold_ptr + adapter)
        word_0 = tl.load(words_ptr + 2 * adapter)
        word_1 = tl.load(words_ptr + 2 * adapter + 1)
        key_0, key_1 = row_keys(word_0, word_1, token_index_ptr, o_row, m_row, target_word)
        for part in range(first_block * (64 // BK), end_block * (64 // BK)):
            low = part // (64 // BK) * 128 + part % (64 // BK) * BK
            # [BM, BK] twice; rows past the tile's end and columns past END_C are computed, not stored
            x_low = load_tile(x_source, stride_x, first_row, end_row, low, end, BM, BK, TMA, True)
            x_high = load_tile(x_source, stride_x, first_row, end_row, low + 64, end, BM, BK, TMA, True)
            # [BK, BC] twice
            m_low = tl.trans(load_tile(m_source, n_4, row_m, end_m, low, end, BC, BK, TMA, True))
            m_high = tl.trans(load_tile(m_source, n_4, row_m, end_m, low + 64, end, BC, BK, TMA, True))
            word = draw_words(key_0, key_1, part * BK + tl.arange(0, BK))
            x_low = tl.where(keep_low(word, threshold), x_low, 0.0)
            x_high = tl.where(keep_high(word, threshold), x_high, 0.0)
            acc = tl.dot(x_low, m_low, acc, input_precision="ieee")
            acc = tl.dot(x_high, m_high, acc, input_precision="ieee")
    else:
        for column in range(start + first_block * 128, tl.minimum(start + end_block * 128, end), BK):
            # [BM, BK], [BK, BC]
            x = load_tile(x_source, stride_x, first_row, end_row, column, end, BM, BK, TMA, True)
            if BY_TARGET:
                m = load_tile(m_source, R, row_m + column, end_m, first_c - target * R, R, BK, BC, TMA, True)
            else:
                m = tl.trans(load_tile(m_source, n_4, row_m, end_m, column, end, BC, BK, TMA, True))
            acc = tl.dot(x, m, acc, input_precision="ieee")
    acc = acc * tl.load(scale_ptr + adapter)
    p_s = s_ptr + (i_split.to(tl.int64) * num_rows + o_row)[:, None] * C + o_c[None, :]
    tl.store(p_s, acc.to(s_ptr.dtype.element_ty), mask=m_row[:, None] & (o_c < END_C)[None, :])


def shrink_input(
    tape: Tape, x: Tensor, a: Tensor, *, layout: Layout, routing: Routing, targets: Sequence[int], early: bool
) -> Tensor:
    """S `[T, C]` = scale * dropout(x) A^T from `x [T, K]` and the packed `a [adapters * rows_of_a, K]`."""
    tiles = routing.tiles(layout.config.shrink.rows)
    splits = layout.shrink_splits(tiles.num_owned, width=layout.num_features, draws=routing.has_dropout)
    s = _empty_shares(tape, x, layout.columns, splits)
    for mask_class in layout.mask_classes(targets, has_dropout=routing.has_dropout):
        block = min(next_power_of_2(mask_class.end_column - mask_class.first_column), 64)
        _launch(
            tape, x, a, s, tiles=tiles, layout=layout, routing=routing,
            mask_class=mask_class, block=block, splits=splits, ends=(layout.num_features,) * 4, by_target=False,
            early=early,
        )  # fmt: skip
    return s if splits == 1 else sum_splits(tape, s, dtype=x.dtype)


def shrink_output_grad(tape: Tape, dy: Tensor, b: Tensor, *, layout: Layout, routing: Routing, early: bool) -> Tensor:
    """dS `[T, C]` = scale * dy B, target by target, from `dy [T, N]` and the packed `b [adapters * N, R]`."""
    tiles = routing.tiles(layout.config.shrink.rows)
    splits = layout.shrink_splits(tiles.num_owned * layout.num_targets, width=max(layout.out_features), draws=False)
    ds = _empty_shares(tape, dy, layout.columns, splits)
    block = min(layout.padded_rank, 64)
    _launch(
        tape, dy, b, ds, tiles=tiles, layout=layout, routing=routing,
        mask_class=MaskClass(first_column=0, end_column=layout.columns, position=0), block=block, splits=splits,
        ends=layout.borders, by_target=True, early=early,
    )  # fmt: skip
    return ds if splits == 1 else sum_splits(tape, ds, dtype=dy.dtype)


def _empty_shares(tape: Tape, x: Tensor, columns: int, splits: int) -> Tensor:
    if splits == 1:
        return tape.empty((x.shape[0], columns), x.dtype)
    return tape.empty((splits, x.shape[0], columns), torch.float32)


def _launch(
    tape: Tape, x: Tensor, matrix: Tensor, s: Tensor, *, tiles: Tiles, layout: Layout, routing: Routing,
    mask_class: MaskClass, block: int, splits: int, ends: tuple[int, int, int, int], by_target: bool, early: bool,
) -> None:  # fmt: skip
    config = layout.config.shrink
    # by target a tile may not run on into other columns: there the packed B is another target's or adapter's
    tma = config.tma and can_use_tma(x, matrix) and not (by_target and any(end % 128 for end in ends))
    first, end = mask_class.first_column, mask_class.end_column
    draws = routing.has_dropout and not by_target
    width = config.columns if draws else 64
    tape.launch(
        shrink_kernel, (tiles.num_owned, ceil_div(end - first, block), splits),
        tile_source(x, (tiles.height, width), tma=tma),
        tile_source(matrix, (width, block) if by_target else (block, width), tma=tma), s,
        tape.fixed(tiles.table), routing.words, routing.thresholds, routing.branch_scale, routing.token_index,
        x.shape[0], x.stride(0), tape.words[mask_class.position], *ends,
        constants={
            "C": layout.columns, "ROWS_A": layout.rows_of_a, "R": layout.padded_rank, "FIRST_C": first, "END_C": end,
            "BM": tiles.height, "BC": block, "BK": width, "SPLITS": splits, "BY_TARGET": by_target,
            "DROPOUT": draws, "TMA": tma, "EARLY": early and splits == 1,
        },
        options={
            "num_warps": min(config.num_warps, max(1, tiles.height // 16)),
            "num_stages": layout.shrink_stages((tiles.height + block) * width * (4 if draws else 2), draws=draws),
        },
    )  # fmt: skip
