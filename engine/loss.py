"""The one definition of the loss: each adapter's own, over the target tokens of its whole global batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.cross_entropy import target_losses
from .batch import TargetShare


def adapter_losses(
    hidden: Tensor, head_weight: Tensor, target_ids: Tensor, shares: Sequence[TargetShare]
) -> tuple[Tensor, ...]:
    """This microbatch's part of each adapter's loss, one scalar per share.

    `hidden [targets, H]` (behind the last norm) and `target_ids [targets]` stand in the order of `shares`; `head_weight
    [V, H]` is frozen. A part is the sum of the cross-entropies divided by the target tokens of the adapter's whole
    global batch, so that the parts of all microbatches add up to the mean that training alone would take. Half
    precision is widened to float32, row by row: a whole matrix of logits never exists.
    """
    wide = torch.float64 if hidden.dtype is torch.float64 else torch.float32
    losses = target_losses(
        hidden, head_weight, target_ids, torch.ones(len(target_ids), dtype=wide, device=hidden.device)
    )
    counts = [share.num_targets for share in shares]
    return tuple(own.sum() / share.divisor for own, share in zip(torch.split(losses, counts), shares, strict=True))
