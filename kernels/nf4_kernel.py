# ruff: noqa: N803 (capital dimension names, as in the formulas)
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Dequantising NF4 on the GPU: memory speed, half a byte read and two written a weight."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launching import launch
from .sizes import ceil_div


@triton.jit
def dequantize_kernel(
    packed_ptr, absmax_ptr, code_ptr, out_ptr, num_bytes, BLOCK_SIZE: tl.constexpr, BYTES: tl.constexpr
):  # fmt: skip
    """out `[2 * num_bytes]`: each byte's high half, then its low half."""
    # [BYTES]
    offset = tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES)
    mask = offset < num_bytes
    byte = tl.load(packed_ptr + offset, mask=mask, other=0).to(tl.int32)
    absmax = tl.load(absmax_ptr + offset * 2 // BLOCK_SIZE, mask=mask, other=0.0)
    first = tl.load(code_ptr + (byte >> 4)) * absmax
    second = tl.load(code_ptr + (byte & 15)) * absmax
    # [2 * BYTES]
    o_out = tl.program_id(0).to(tl.int64) * 2 * BYTES + tl.arange(0, 2 * BYTES)
    weight = tl.interleave(first, second).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + o_out, weight, mask=o_out < 2 * num_bytes)


def dequantize(packed: Tensor, absmax: Tensor, code: Tensor, out: Tensor, *, block_size: int) -> None:
    """Write `out [rows, K]` from its bytes `[rows * K / 2]` and its blocks' maxima."""
    num_bytes = packed.numel()
    launch(
        dequantize_kernel, (ceil_div(num_bytes, 1024),), packed, absmax, code, out, num_bytes,
        device=out.device, constants={"BLOCK_SIZE": block_size, "BYTES": 1024}, options={"num_warps": 4},
    )  # fmt: skip
