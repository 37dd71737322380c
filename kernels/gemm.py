# ruff: noqa: N803 (capital dimension names, as in the formulas)
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The frozen product with the LoRA product as more of its inner dimension: persistent, by TMA, on Hopper and newer.

`y = [x | S] [W | B]^T` and `dx = [dy | dS] [W ; A]`, without storing either concatenation: the LoRA columns are one
more step of a tile's loop. A block of rows that holds two owners gets the frozen product alone; `add_borders` adds the
rest there, adapter by adapter, so that no adapter's NaN is ever multiplied with another's zero.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from .draws import draw_words, keep_high, keep_low, row_keys
from .layout import GemmConfig, Layout
from .routing import Routing
from .sizes import ceil_div
from .tape import Tape
from .tiles import can_use_tma

OUT_OF_RANGE = tl.constexpr(1 << 30)

BORDER_ROWS = 3
"""The fused product takes calls of which at most one row in so many lies in a block of two owners."""

LEAST_FILL = 0.9
"""The last wave of tiles may leave so much of the chip idle: 32b o at T = 2048 has 2.4 waves, and the fused product was
38 % above the library's, which cuts other tiles there; at 2.9 waves 20 % (H200, 2026-11-24)."""

MASKED_REGISTERS = 200
"""Registers of a thread where the epilogue draws dropout: unbounded the compiler takes all 255, and no pass of the
adapters' gradients fits beside it on a multiprocessor; with 200 it spills none (triton 3.6, sm_90, 2026-11-24)."""


@triton.jit(do_not_specialize=["target_word"])
def gemm_kernel(
    x_desc, w_desc, y_desc, s_desc, m_desc, owner_ptr, bias_ptr, rows, columns, inner, n_1, n_2, n_3, stride_m,
    words_ptr, threshold_ptr, token_index_ptr, target_word,
    R: tl.constexpr, TARGETS: tl.constexpr,
    FORWARD: tl.constexpr, HAS_BIAS: tl.constexpr, DROPOUT: tl.constexpr, EARLY: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BANDS: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """y `[rows, columns]` = x W^T (FORWARD) or x W, plus the LoRA product of every block with one owner.

    `s_desc` reads S `[T, C]`, `m_desc` the packed B `[adapters * N, R]` (FORWARD) or A `[adapters * C, K]`.
    """
    num_m, num_n = tl.cdiv(rows, BM), tl.cdiv(columns, BN)
    for tile in tl.range(tl.program_id(0), num_m * num_n, PROGRAMS, flatten=True):
        # bands of row blocks: a wave of tiles shares few rows of x and few of W, so both stay in the L2 cache
        first_m = tile // (BANDS * num_n) * BANDS
        in_band = tl.minimum(num_m - first_m, BANDS)
        i_m = first_m + tile % (BANDS * num_n) % in_band
        i_n = tile % (BANDS * num_n) // in_band
        row, column = i_m * BM, i_n * BN
        # [BM, BN]
        acc = tl.zeros((BM, BN), tl.float32)
        for k in range(0, tl.cdiv(inner, BK)):
            # [BM, BK], [BK, BN]
            x = x_desc.load([row, k * BK])
            if FORWARD:  # noqa: SIM108 (a branch of the compiler's, not a value)
                w = w_desc.load([column, k * BK]).T
            else:
                w = w_desc.load([k * BK, column])
            acc = tl.dot(x, w, acc)
        if EARLY:
            # the pass that writes S still runs beside the first tiles; from here on it must be done
            gdc_wait()
        # a coordinate out of range reads zeros: the block of two owners or of none gets the frozen product alone
        adapter = tl.load(owner_ptr + i_m)
        row_s = tl.where(adapter >= 0, row, OUT_OF_RANGE)
        if FORWARD:
            target = (column >= n_1).to(tl.int32) + (column >= n_2).to(tl.int32) + (column >= n_3).to(tl.int32)
            # [BM, R], [R, BN]
            s = s_desc.load([row_s, target * R])
            m = m_desc.load([tl.where(adapter >= 0, adapter * stride_m + column, OUT_OF_RANGE), 0]).T
            acc = tl.dot(s, m, acc)
        elif not DROPOUT:
            row_m = tl.where(adapter >= 0, adapter * stride_m, OUT_OF_RANGE)
            for target in tl.static_range(TARGETS):
                acc = tl.dot(s_desc.load([row_s, target * R]), m_desc.load([row_m + target * R, column]), acc)
        # [BM, 2, BN / 2]: stored by halves, so that half the shared memory does
        halves = tl.permute(tl.reshape(acc, (BM, 2, BN // 2)), (0, 2, 1))
        left, right = tl.split(halves)
        if DROPOUT:
            # [BM], [BM]
            o_row = row + tl.arange(0, BM)
            word_0 = tl.load(words_ptr + 2 * tl.maximum(adapter, 0))
            word_1 = tl.load(words_ptr + 2 * tl.maximum(adapter, 0) + 1)
            threshold = tl.load(threshold_ptr + tl.maximum(adapter, 0))
            key_0, key_1 = row_keys(word_0, word_1, token_index_ptr, o_row, o_row < rows, target_word)
            row_m = tl.where(adapter >= 0, adapter * stride_m, OUT_OF_RANGE)
            # [BM, R]: all targets' columns at once; past the last of them the descriptor reads zeros
            s = s_desc.load([row_s, 0])
            left_low, left_high = masked_product(left, s, m_desc, key_0, key_1, threshold, row_m, column, BM)
            y_desc.store([row, column], left_low.to(y_desc.dtype))
            y_desc.store([row, column + 64], left_high.to(y_desc.dtype))
            right_low, right_high = masked_product(right, s, m_desc, key_0, key_1, threshold, row_m, column + 128, BM)
            y_desc.store([row, column + 128], right_low.to(y_desc.dtype))
            y_desc.store([row, column + 192], right_high.to(y_desc.dtype))
        if HAS_BIAS:
            o_left = column + tl.arange(0, BN // 2)
            o_right = o_left + BN // 2
            left += tl.load(bias_ptr + o_left, mask=o_left < columns, other=0.0).to(tl.float32)[None, :]
            right += tl.load(bias_ptr + o_right, mask=o_right < columns, other=0.0).to(tl.float32)[None, :]
        if not DROPOUT:
            y_desc.store([row, column], left.to(y_desc.dtype))
            y_desc.store([row, column + BN // 2], right.to(y_desc.dtype))


@triton.jit
def masked_product(acc, s, m_desc, key_0, key_1, threshold, row_m, column, BM: tl.constexpr):
    """128 columns of dx `[BM, 128]` with mask * (dS A) added, as two halves that share their words."""
    # [BM, 2, 64]
    acc_low, acc_high = tl.split(tl.permute(tl.reshape(acc, (BM, 2, 64)), (0, 2, 1)))
    # [BM, R] times [R, 64], twice
    low = tl.dot(s, m_desc.load([row_m, column]))
    high = tl.dot(s, m_desc.load([row_m, column + 64]))
    word = draw_words(key_0, key_1, column // 2 + tl.arange(0, 64))
    acc_low += tl.where(keep_low(word, threshold), low, 0.0)
    acc_high += tl.where(keep_high(word, threshold), high, 0.0)
    return acc_low, acc_high


@triton.jit(do_not_specialize=["target_word"])
def add_borders_kernel(
    y_ptr, s_ptr, m_ptr, table_ptr, words_ptr, threshold_ptr, token_index_ptr, target_word,
    columns, n_1, n_2, n_3, stride_adapter, stride_n, stride_r,
    C: tl.constexpr, R: tl.constexpr, STEPS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """y `[rows, columns]` += [mask *] S M of one row tile; R columns of S from its target's on, in STEPS of 16."""
    i_tile, i_n = tl.program_id(0), tl.program_id(1)
    first_row = tl.load(table_ptr + 4 * i_tile)
    end_row = tl.load(table_ptr + 4 * i_tile + 1)
    adapter = tl.load(table_ptr + 4 * i_tile + 2)
    column = i_n * BN
    target = (column >= n_1).to(tl.int32) + (column >= n_2).to(tl.int32) + (column >= n_3).to(tl.int32)
    # [BM], [BN], [16]
    o_row = first_row + tl.arange(0, BM)
    o_n = column + tl.arange(0, BN)
    m_row, m_n = o_row < end_row, o_n < columns
    o_r = tl.arange(0, 16)
    p_s = s_ptr + o_row.to(tl.int64)[:, None] * C + (target * R + o_r)[None, :]
    p_m = m_ptr + adapter.to(tl.int64) * stride_adapter + o_r[:, None] * stride_r + o_n[None, :] * stride_n
    p_y = y_ptr + o_row.to(tl.int64)[:, None] * columns + o_n[None, :]
    mask = m_row[:, None] & m_n[None, :]
    # [BM, BN]
    acc = tl.zeros((BM, BN), tl.float32)
    for step in range(STEPS):
        # [BM, 16], [16, BN]
        s = tl.load(p_s + 16 * step, mask=m_row[:, None], other=0.0)
        m = tl.load(p_m + 16 * step * stride_r, mask=m_n[None, :], other=0.0)
        acc = tl.dot(s, m, acc, input_precision="ieee")
    if DROPOUT:
        word_0 = tl.load(words_ptr + 2 * adapter)
        word_1 = tl.load(words_ptr + 2 * adapter + 1)
        threshold = tl.load(threshold_ptr + adapter)
        key_0, key_1 = row_keys(word_0, word_1, token_index_ptr, o_row, m_row, target_word)
        word = draw_words(key_0, key_1, o_n // 128 * 64 + o_n % 64)
        low = (o_n // 64 % 2 == 0)[None, :]
        acc = tl.where((low & keep_low(word, threshold)) | (~low & keep_high(word, threshold)), acc, 0.0)
    acc += tl.load(p_y, mask=mask, other=0.0).to(tl.float32)
    tl.store(p_y, acc.to(y_ptr.dtype.element_ty), mask=mask)


def can_fuse_backward(
    x: Tensor, dy: Tensor, weight: Tensor, *, layout: Layout, routing: Routing, targets: Sequence[int]
) -> bool:
    """`can_fuse` for dx, where every target's ranks stand beside the tiles at once and one mask serves all."""
    config = layout.config.gemm
    if config is None or layout.columns > 64:
        return False
    if routing.has_dropout and (len(set(targets)) > 1 or config.columns != 256):
        return False
    return can_fuse(x, dy, weight, layout=layout, routing=routing, num_columns=x.shape[1])


def can_fuse(x: Tensor, dy: Tensor, weight: Tensor, *, layout: Layout, routing: Routing, num_columns: int) -> bool:
    """Whether the fused product takes this call: TMA, ranks that fit beside the tiles, blocks with one owner mostly."""
    config = layout.config.gemm
    if config is None or layout.padded_rank > 64:
        return False
    if routing.bucket is not None:
        # how many rows lie in blocks of two owners differs among the microbatches of a bucket
        return False
    if not can_use_tma(x, dy, weight) or not weight.is_contiguous():
        return False
    num_tiles = ceil_div(x.shape[0], config.rows) * ceil_div(num_columns, config.columns)
    waves = num_tiles / num_multiprocessors(x.device)
    if waves < LEAST_FILL * math.ceil(waves):
        return False
    if any(end % config.columns for end in layout.borders[: layout.num_targets - 1]):
        return False
    return routing.blocks(config.rows).num_border_rows * BORDER_ROWS <= routing.num_rows


def fused_forward(
    tape: Tape, y: Tensor, x: Tensor, weight: Tensor, s: Tensor, b: Tensor, bias: Tensor | None,
    *, layout: Layout, routing: Routing, early: bool,
) -> None:  # fmt: skip
    """Write `y [T, N]` = x W^T + S B^T + bias."""
    config = layout.config.gemm
    assert config is not None
    r, n = layout.padded_rank, layout.total_out_features
    blocks = routing.blocks(config.rows)
    n_1, n_2, n_3, _ = layout.borders
    tape.launch(
        gemm_kernel, (_num_programs(y, config.rows, config.columns),),
        TensorDescriptor.from_tensor(x, [config.rows, config.depth]),
        TensorDescriptor.from_tensor(weight, [config.columns, config.depth]),
        TensorDescriptor.from_tensor(y, [config.rows, config.columns // 2]),
        TensorDescriptor.from_tensor(s, [config.rows, r]), TensorDescriptor.from_tensor(b, [config.columns, r]),
        tape.fixed(blocks.owners), b if bias is None else bias, *y.shape, x.shape[1], n_1, n_2, n_3, n,
        routing.words, routing.thresholds, routing.token_index, tape.words[0],
        constants={
            "R": r, "TARGETS": 1, "FORWARD": True, "HAS_BIAS": bias is not None, "DROPOUT": False,
            **_gemm_constants(config, y, early=early),
        },
        options=_gemm_options(config, early=early, maxnreg=None),
    )  # fmt: skip
    if blocks.borders.num_tiles:
        width = min(128, config.columns)
        tape.launch(
            add_borders_kernel, (blocks.borders.num_tiles, ceil_div(n, width)),
            y, s, b, tape.fixed(blocks.borders.table), routing.words, routing.thresholds, routing.token_index,
            tape.words[0], n, n_1, n_2, n_3, n * r, r, 1,
            constants={
                "C": layout.columns, "R": r, "STEPS": r // 16, "BM": blocks.borders.height, "BN": width,
                "DROPOUT": False,
            },
            options={"num_warps": 4},
        )  # fmt: skip


def fused_backward(
    tape: Tape, dx: Tensor, dy: Tensor, weight: Tensor, ds: Tensor, a: Tensor,
    *, layout: Layout, routing: Routing, early: bool,
) -> None:  # fmt: skip
    """Write `dx [T, K]` = dy W + mask * (dS A), the mask that of the first target, and so of all."""
    config = layout.config.gemm
    assert config is not None
    c, rows_of_a, k = layout.columns, layout.rows_of_a, layout.num_features
    dropout = routing.has_dropout
    # under dropout one product of all targets' ranks, masked by quarters; else target by target, whole tiles
    r = rows_of_a if dropout else layout.padded_rank
    blocks = routing.blocks(config.rows)
    tape.launch(
        gemm_kernel, (_num_programs(dx, config.rows, config.columns),),
        TensorDescriptor.from_tensor(dy, [config.rows, config.depth]),
        TensorDescriptor.from_tensor(weight, [config.depth, config.columns]),
        TensorDescriptor.from_tensor(dx, [config.rows, 64 if dropout else config.columns // 2]),
        TensorDescriptor.from_tensor(ds, [config.rows, r]),
        TensorDescriptor.from_tensor(a, [r, 64 if dropout else config.columns]),
        tape.fixed(blocks.owners), a, *dx.shape, dy.shape[1], k, k, k, rows_of_a,
        routing.words, routing.thresholds, routing.token_index, tape.words[0],
        constants={
            "R": r, "TARGETS": layout.num_targets, "FORWARD": False, "HAS_BIAS": False, "DROPOUT": dropout,
            **_gemm_constants(config, dx, early=early),
        },
        options=_gemm_options(config, early=early, maxnreg=MASKED_REGISTERS if dropout else None),
    )  # fmt: skip
    if blocks.borders.num_tiles:
        width = min(128, config.columns)
        tape.launch(
            add_borders_kernel, (blocks.borders.num_tiles, ceil_div(k, width)),
            dx, ds, a, tape.fixed(blocks.borders.table), routing.words, routing.thresholds, routing.token_index,
            tape.words[0], k, k, k, k, rows_of_a * k, 1, k,
            constants={
                "C": c, "R": 0, "STEPS": c // 16, "BM": blocks.borders.height, "BN": width, "DROPOUT": dropout,
            },
            options={"num_warps": 4},
        )  # fmt: skip


def _gemm_constants(config: GemmConfig, y: Tensor, *, early: bool) -> dict[str, int | bool]:
    return {
        "EARLY": early, "BM": config.rows, "BN": config.columns, "BK": config.depth, "BANDS": config.bands,
        "PROGRAMS": num_multiprocessors(y.device),
    }  # fmt: skip


def _gemm_options(config: GemmConfig, *, early: bool, maxnreg: int | None) -> dict[str, int | bool | None]:
    return {
        "num_warps": config.num_warps, "num_stages": config.num_stages, "launch_pdl": early, "maxnreg": maxnreg,
    }  # fmt: skip


@functools.cache
def num_multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def _num_programs(y: Tensor, rows: int, columns: int) -> int:
    num_tiles = ceil_div(y.shape[0], rows) * ceil_div(y.shape[1], columns)
    return min(num_multiprocessors(y.device), num_tiles)
