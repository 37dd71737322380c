# ruff: noqa: N803 (capital dimension names, as in the formulas)
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Reading a tile `[BM, BN]` of a row-major matrix: by the tensor memory accelerator (TMA) or by pointers."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def load_tile(
    source, stride, row, end_row, column, num_columns,
    BM: tl.constexpr, BN: tl.constexpr, TMA: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Rows from `row`, columns from `column`; zeros past `num_columns`, and past `end_row` unless WHOLE.

    By TMA the rows past `end_row` are read and then selected away, never multiplied: they may be another adapter's NaN.
    """
    # [BM]
    o_row = row + tl.arange(0, BM)
    if TMA:
        tile = source.load([row, column])
        if not WHOLE:
            tile = tl.where((o_row < end_row)[:, None], tile, 0.0)
    else:
        o_column = column + tl.arange(0, BN)
        p_tile = source + o_row.to(tl.int64)[:, None] * stride + o_column[None, :]
        tile = tl.load(p_tile, mask=(o_row < end_row)[:, None] & (o_column < num_columns)[None, :], other=0.0)
    return tile


def as_rows(x: Tensor) -> Tensor:
    """`[T, K]` from any leading shape; a copy only where its rows do not lie one after another in memory."""
    rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    # an expanded tensor has rows of stride 0, which the tensor memory accelerator does not take
    if rows.stride(-1) != 1 or rows.stride(0) < rows.shape[1]:
        rows = rows.contiguous()
    return rows


def tile_source(matrix: Tensor, shape: tuple[int, int], *, tma: bool) -> Any:
    """What `load_tile` reads `matrix` through."""
    return TensorDescriptor.from_tensor(matrix, list(shape)) if tma else matrix


def can_use_tma(*matrices: Tensor) -> bool:
    """Hopper or newer, 16-bit elements, and rows that begin at multiples of 16 bytes."""
    return all(
        matrix.device.type == "cuda"
        and matrix.element_size() == 2
        and matrix.stride(0) % 8 == 0
        and matrix.data_ptr() % 16 == 0
        and _has_tma(matrix.device)
        for matrix in matrices
    )


@functools.cache
def _has_tma(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)
