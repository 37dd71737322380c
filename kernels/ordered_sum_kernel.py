# mypy: disable-error-code="untyped-decorator, no-untyped-def"
"""The one-program kernel of ordered_sum.py; importing it needs triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launching import launch


@triton.jit(do_not_specialize=["size"])
def ordered_sum_kernel(values_ptr, start_ptr, total_ptr, size):
    """A scalar from `[size]`: a few hundred additions, one after another."""
    total = tl.load(start_ptr)
    for place in range(0, size):
        total += tl.load(values_ptr + place)
    tl.store(total_ptr, total)


def launch_ordered_sum(values: Tensor, start: Tensor) -> Tensor:
    """`start + values[0] + values[1] + ...` of contiguous float64 `values [n]`."""
    total = torch.empty_like(start)
    launch(
        ordered_sum_kernel, (1,), values, start, total, values.numel(),
        device=values.device, constants={}, options={"num_warps": 1},
    )  # fmt: skip
    return total
