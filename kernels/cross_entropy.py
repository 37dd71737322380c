"""Head and cross-entropy of target tokens in chunks of rows: never the whole logits, never float32 logits on a GPU.

A row's loss depends on that row alone, so its gradient is made right behind its loss, and backward only scales rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .rows import check_frozen, runs_kernels
from .sizes import ceil_div, round_up

CHUNK_BYTES = 384 << 20
"""Size of a chunk's logits, about: 1536 rows of Llama 3's 128,256 words in bf16."""


def target_losses(
    hidden: Tensor, head_weight: Tensor, target_ids: Tensor, row_weights: Tensor, *, chunk_rows: int | None = None
) -> Tensor:
    """`row_weights[i] * cross_entropy(hidden[i] @ head_weight^T, target_ids[i])`, `[n]`, differentiable in `hidden`.

    `hidden [n, H]` behind the last norm, only rows that have a target; `head_weight [V, H]` frozen; `target_ids [n]`
    int64, each in 0..V-1 (another id gives NaN on a GPU and an error on a CPU); `row_weights [n]` float32. The result
    is float32; for float64 hidden states it is float64, and the weights may be. `chunk_rows` rows are worked on at a
    time (default: about 384 MiB of logits). Raises `ValueError` on arguments that do not fit together.
    """
    _check(hidden, head_weight, target_ids, row_weights, chunk_rows)
    rows = chunk_rows or default_chunk_rows(hidden, num_words=head_weight.shape[0])
    gradient = hidden.requires_grad and torch.is_grad_enabled()
    losses: Tensor = TargetLosses.apply(hidden, head_weight, target_ids, row_weights, rows, gradient)  # type: ignore[no-untyped-call]
    return losses


def default_chunk_rows(hidden: Tensor, *, num_words: int) -> int:
    """Rows a chunk: as many chunks as `CHUNK_BYTES` asks for, all of one size, in whole multiples of 128."""
    limit = max(128, CHUNK_BYTES // (num_words * hidden.element_size()))
    num_chunks = max(1, ceil_div(hidden.shape[0], limit))
    return max(1, ceil_div(hidden.shape[0], num_chunks * 128)) * 128


class TargetLosses(torch.autograd.Function):
    """Losses, and with them what they change by; saves `[n, H]` and nothing of the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head_weight: Tensor,
        target_ids: Tensor,
        row_weights: Tensor,
        rows: int,
        gradient: bool,
    ) -> Tensor:
        losses, change = chunked_losses(hidden, head_weight, target_ids, chunk_rows=rows, gradient=gradient)
        ctx.save_for_backward(change, row_weights)
        return losses.mul_(row_weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        change, row_weights = ctx.saved_tensors
        # weights come in here, not before: in half precision a weight of 1e-4 would cost small probabilities their bits
        scale = (grad * row_weights)[:, None]
        dhidden = torch.mul(change, scale, out=torch.empty(change.shape, dtype=change.dtype, device=change.device))
        return dhidden, None, None, None, None, None


def chunked_losses(
    hidden: Tensor, head_weight: Tensor, target_ids: Tensor, *, chunk_rows: int, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """(unweighted losses `[n]`, what each changes by with its own hidden row `[n, H]`, or None)."""
    n, num_words = hidden.shape[0], head_weight.shape[0]
    exact = hidden.dtype == torch.float64
    losses = torch.empty(n, dtype=torch.float64 if exact else torch.float32, device=hidden.device)
    change = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device) if gradient else None
    # Rows of a whole number of 128 bytes: products and vector loads want them aligned whatever V is.
    pitch = round_up(num_words, 64)
    buffer = torch.empty((min(chunk_rows, n), pitch), dtype=hidden.dtype, device=hidden.device)[:, :num_words]
    fused, target_ids = runs_kernels(hidden), target_ids.contiguous()
    for first in range(0, n, chunk_rows):
        end = min(first + chunk_rows, n)
        logits = torch.mm(hidden[first:end], head_weight.t(), out=buffer[: end - first])
        if fused:
            from .cross_entropy_kernel import fused_chunk_losses

            fused_chunk_losses(logits, target_ids[first:end], losses[first:end], gradient=gradient)
        else:
            reference_chunk_losses(logits, target_ids[first:end], losses[first:end], gradient=gradient)
        if change is not None:
            torch.mm(logits, head_weight, out=change[first:end])
    return losses, change


def reference_chunk_losses(logits: Tensor, target_ids: Tensor, losses: Tensor, *, gradient: bool) -> None:
    """What `fused_chunk_losses` does, in plain PyTorch: half precision is widened to float32."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log_share = torch.log_softmax(wide, dim=-1)
    losses.copy_(-log_share.gather(1, target_ids[:, None])[:, 0])
    if gradient:
        share = log_share.exp_()
        logits.copy_(share.scatter_add_(1, target_ids[:, None], -torch.ones_like(share[:, :1])))


def _check(
    hidden: Tensor, head_weight: Tensor, target_ids: Tensor, row_weights: Tensor, chunk_rows: int | None
) -> None:
    if hidden.ndim != 2 or head_weight.ndim != 2 or hidden.shape[1] != head_weight.shape[1]:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and head_weight {tuple(head_weight.shape)}: give [n, H] and [V, H]"
        )
    if not hidden.is_floating_point() or head_weight.dtype != hidden.dtype:
        raise ValueError(f"hidden has dtype {hidden.dtype}, head_weight {head_weight.dtype}: give one floating dtype")
    n = hidden.shape[0]
    if target_ids.shape != (n,) or target_ids.dtype != torch.int64:
        raise ValueError(f"target_ids is {target_ids.dtype} {tuple(target_ids.shape)}: give int64 [{n}]")
    wide = (torch.float32, torch.float64) if hidden.dtype == torch.float64 else (torch.float32,)
    if row_weights.shape != (n,) or row_weights.dtype not in wide:
        raise ValueError(f"row_weights is {row_weights.dtype} {tuple(row_weights.shape)}: give float32 [{n}]")
    devices = [tensor.device for tensor in (hidden, head_weight, target_ids, row_weights)]
    if len(set(devices)) != 1:
        raise ValueError(
            f"hidden, head_weight, target_ids and row_weights are on {', '.join(map(str, devices))}: move them to one"
        )
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows is {chunk_rows}: give at least 1, or leave it out")
    check_frozen(head_weight, "head_weight")


__all__ = ["chunked_losses", "default_chunk_rows", "reference_chunk_losses", "target_losses"]
