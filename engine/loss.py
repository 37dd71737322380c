"""The one definition of the loss: each adapter's own, over the target tokens of its whole global batch."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .batch import TargetShare


def adapter_losses(logits: Tensor, target_ids: Tensor, shares: Sequence[TargetShare]) -> tuple[Tensor, ...]:
    """This microbatch's part of each adapter's loss, one scalar per share.

    `logits [targets, V]` and `target_ids [targets]` stand in the order of `shares`. A part is the sum of the
    cross-entropies divided by the target tokens of the adapter's whole global batch, so that the parts of all
    microbatches add up to the mean that training alone would take. Half precision is widened to float32.
    """
    wide = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    counts = [share.num_targets for share in shares]
    return tuple(
        cross_entropy(own_logits, own_ids, reduction="sum") / share.divisor
        for own_logits, own_ids, share in zip(
            torch.split(wide, counts), torch.split(target_ids, counts), shares, strict=True
        )
    )
