"""The loss of a microbatch, by hand."""

import math

import torch

from loraplex.engine.batch import TargetShare
from loraplex.engine.loss import adapter_losses


def test_each_adapter_divides_by_its_own_whole_batch() -> None:
    # Uniform logits over 4 words: every target costs log 4.
    logits = torch.zeros(5, 4)
    shares = (
        TargetShare(adapter=0, global_batch=3, num_targets=2, divisor=8),
        TargetShare(adapter=4, global_batch=0, num_targets=3, divisor=3),
    )
    losses = adapter_losses(logits, torch.tensor([0, 1, 2, 3, 0]), shares)
    torch.testing.assert_close(torch.stack(losses), torch.tensor([2 / 8 * math.log(4), math.log(4)]))


def test_parts_of_a_batch_add_up_to_its_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(10, 7, generator=generator), torch.randint(0, 7, (10,), generator=generator)

    def part(rows: slice) -> torch.Tensor:
        count = len(ids[rows])
        share = TargetShare(adapter=0, global_batch=0, num_targets=count, divisor=10)
        return adapter_losses(logits[rows], ids[rows], [share])[0]

    whole = torch.nn.functional.cross_entropy(logits, ids)
    torch.testing.assert_close(part(slice(0, 3)) + part(slice(3, 10)), whole)


def test_half_precision_is_widened_and_double_kept() -> None:
    share = TargetShare(adapter=0, global_batch=0, num_targets=2, divisor=2)
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2):
        (loss,) = adapter_losses(torch.zeros(2, 3, dtype=dtype), torch.tensor([0, 1]), [share])
        assert loss.dtype is expected
