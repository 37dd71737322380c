# ruff: noqa: N803 (capital dimension names, as in the formulas)
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""y = bias + S B^T, written before the library's own GEMM adds the frozen product to it."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .draws import locate
from .layout import Layout
from .routing import Routing
from .tape import Tape


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


def expand(
    tape: Tape, y: Tensor, s: Tensor, b: Tensor, bias: Tensor | None, *, layout: Layout, routing: Routing
) -> None:
    """Write `y [T, N]` = bias + S B^T, so that the frozen product can be added by the library's own GEMM."""
    config = layout.config.expand
    tiles = routing.tiles(config.rows)
    tape.launch(
        expand_kernel, (tiles.num_tiles, layout.chunk_ends(config.columns)[-1]),
        s, b, b if bias is None else bias, y, tape.fixed(tiles.table), y.stride(0), *layout.borders,
        constants={
            "C": layout.columns, "R": layout.padded_rank, "HAS_BIAS": bias is not None,
            "BM": config.rows, "BN": config.columns, "BR": min(layout.padded_rank, 64),
        },
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )  # fmt: skip
