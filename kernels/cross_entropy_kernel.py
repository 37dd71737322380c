# ruff: noqa: N803 (capital dimension names, as in the formulas)
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Cross-entropy of a chunk of logits on the GPU: two reads and one write, the gradient in the logits' own place."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launching import launch
from .sizes import next_power_of_2
from .streams import on_device

BLOCK, NUM_WARPS = 8192, 16


@triton.jit
def cross_entropy_kernel(
    logits_ptr, target_ptr, losses_ptr, stride, V, GRADIENT: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    """loss of one row = log sum exp - logit of its target; then, if asked, logits = softmax - one-hot in place."""
    row = tl.program_id(0).to(tl.int64)
    p_row = logits_ptr + row * stride
    target = tl.load(target_ptr + row)
    # an id outside of the vocabulary is no address: its loss is NaN, which the run's own guard catches
    own = tl.load(p_row + target, mask=(target >= 0) & (target < V), other=float("nan")).to(tl.float32)
    # [B]: each lane its own running maximum and sum, one exponential a logit; -1e30 stands for "none yet"
    lane = tl.arange(0, B)
    top = tl.full((B,), -1e30, tl.float32)
    total = tl.zeros((B,), tl.float32)
    for start in range(0, V, B):
        x = tl.load(p_row + start + lane, mask=start + lane < V, other=-float("inf")).to(tl.float32)
        shrink = tl.exp(-tl.abs(x - top))
        total = tl.where(x > top, total * shrink + 1.0, total + shrink)
        top = tl.where(x > top, x, top)
    highest = tl.max(top, axis=0)
    whole = tl.sum(total * tl.exp(top - highest), axis=0)
    # differences of logits first: at logits of 1e4, log(whole) added to `highest` would lose all but its first digits
    tl.store(losses_ptr + row, tl.log(whole) + (highest - own))
    if GRADIENT:
        for start in range(0, V, B):
            x = tl.load(p_row + start + lane, mask=start + lane < V, other=0.0).to(tl.float32)
            gradient = tl.exp(x - highest) / whole - tl.where(start + lane == target, 1.0, 0.0)
            tl.store(p_row + start + lane, gradient.to(logits_ptr.dtype.element_ty), mask=start + lane < V)


def fused_chunk_losses(logits: Tensor, target_ids: Tensor, losses: Tensor, *, gradient: bool) -> None:
    """Write `losses [rows]` (float32) of `logits [rows, V]`; with `gradient` turn the logits into theirs."""
    num_rows, num_words = logits.shape
    block = min(BLOCK, next_power_of_2(num_words))
    with on_device(logits.device):
        launch(
            cross_entropy_kernel, (num_rows,), logits, target_ids, losses, logits.stride(0), num_words,
            device=logits.device, constants={"GRADIENT": gradient, "B": block},
            options={"num_warps": NUM_WARPS if block == BLOCK else 4},
        )  # fmt: skip
