"""The loss of a microbatch, by hand."""

import math

import torch

from loraplex.engine.batch import TargetShare
from loraplex.engine.loss import adapter_losses


def test_each_adapter_divides_by_its_own_whole_batch() -> None:
    # A head of zeros gives uniform logits over 4 words: every target costs log 4.
    shares = (
        TargetShare(adapter=0, global_batch=3, num_targets=2, divisor=8),
        TargetShare(adapter=4, global_batch=0, num_targets=3, divisor=3),
    )
    losses = adapter_losses(torch.ones(5, 2), torch.zeros(4, 2), torch.tensor([0, 1, 2, 3, 0]), shares)
    torch.testing.assert_close(torch.stack(losses), torch.tensor([2 / 8 * math.log(4), math.log(4)]))


def test_parts_of_a_batch_add_up_to_its_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(10, 5, generator=generator), torch.randn(7, 5, generator=generator)
    ids = torch.randint(0, 7, (10,), generator=generator)

    def part(rows: slice) -> torch.Tensor:
        count = len(ids[rows])
        share = TargetShare(adapter=0, global_batch=0, num_targets=count, divisor=10)
        return adapter_losses(hidden[rows], head, ids[rows], [share])[0]

    whole = torch.nn.functional.cross_entropy(hidden @ head.T, ids)
    torch.testing.assert_close(part(slice(0, 3)) + part(slice(3, 10)), whole)


def test_half_precision_is_widened_and_double_kept() -> None:
    share = TargetShare(adapter=0, global_batch=0, num_targets=2, divisor=2)
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2):
        hidden, head = torch.zeros(2, 3, dtype=dtype), torch.zeros(4, 3, dtype=dtype)
        (loss,) = adapter_losses(hidden, head, torch.tensor([0, 1]), [share])
        assert loss.dtype is expected
