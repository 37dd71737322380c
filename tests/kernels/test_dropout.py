"""Dropout's masks: what they depend on, what they do not, and how they are spread."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from loraplex.kernels import fused, reference
from loraplex.kernels.reference import dropout_mask
from loraplex.kernels.routing import Routing, Segment
from loraplex.tests.kernels.cases import Case, rounded

TOKENS, FEATURES = 1024, 2048


def mask(
    p: float = 0.1, *, seed: int = 7, global_batch: int = 3, target: int = 11, first_token: int = 0,
    num_features: int = FEATURES,
) -> Tensor:  # fmt: skip
    return dropout_mask(
        seed=seed, global_batch=global_batch, target=target, token_index=torch.arange(TOKENS) + first_token,
        num_features=num_features, dropout=p,
    )  # fmt: skip


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_rate_is_p_overall_in_every_row_and_in_every_column(p: float) -> None:
    dropped = (~mask(p)).double()
    deviation = (p * (1 - p)) ** 0.5
    assert abs(dropped.mean() - p) < 5 * deviation / (TOKENS * FEATURES) ** 0.5
    # largest of some thousand normal deviates: five and a half deviations would come up once in 10,000 runs
    assert (dropped.mean(dim=1) - p).abs().max() < 5.5 * deviation / FEATURES**0.5
    assert (dropped.mean(dim=0) - p).abs().max() < 5.5 * deviation / TOKENS**0.5


def test_no_dropout_keeps_everything() -> None:
    assert mask(0.0).all()


CHANGES = {
    "seed": lambda: mask(seed=8),
    "step": lambda: mask(global_batch=4),
    "layer": lambda: mask(target=12),
    "token": lambda: mask(first_token=TOKENS),
}


@pytest.mark.parametrize("change", CHANGES)
def test_masks_of_other_adapters_steps_layers_and_tokens_are_independent(change: str) -> None:
    first, second = (~mask()).double(), (~CHANGES[change]()).double()
    both = (first * second).mean()
    assert abs(both - 0.01) < 5 * (0.01 * 0.99 / first.numel()) ** 0.5


@pytest.mark.parametrize("shift", [1, 2, 63, 64, 65, 128])
def test_neighbouring_features_and_tokens_are_independent(shift: int) -> None:
    dropped = (~mask()).double()
    bound = 5 * (0.01 * 0.99 / dropped.numel()) ** 0.5
    assert abs((dropped[:, shift:] * dropped[:, :-shift]).mean() - 0.01) < bound
    assert abs((dropped[shift:] * dropped[:-shift]).mean() - 0.01) < bound


def test_the_patterns_of_four_features_of_one_block_are_as_frequent_as_they_should_be() -> None:
    dropped = (~mask(0.5)).long().view(TOKENS, -1, 2, 64)
    pattern = dropped[:, :, 0, :-1] + 2 * dropped[:, :, 1, :-1] + 4 * dropped[:, :, 0, 1:] + 8 * dropped[:, :, 1, 1:]
    counts = torch.bincount(pattern.flatten(), minlength=16).double()
    wanted = counts.sum() / 16
    # chi-squared with 15 degrees of freedom: 44 comes up once in 10,000
    assert ((counts - wanted) ** 2 / wanted).sum() < 44


def test_a_feature_keeps_its_bits_however_many_features_there_are() -> None:
    assert torch.equal(mask()[:, :300], mask(num_features=300))


def test_the_cut_into_microbatches_and_the_neighbours_leave_the_mask_alone(device: str) -> None:
    case = Case(
        num_rows=60, num_features=128, out_features=(32,), segments=((0, 60, 0),), lora_ranks=((8, 8),),
        dropout=(0.4, 0.4),
    )  # fmt: skip
    values = rounded(case.inputs(), torch.float32, device)
    index = torch.arange(60) + 5

    def output(rows: Tensor, segments: Sequence[Segment], token_index: Tensor) -> Tensor:
        routing = Routing.build(
            num_rows=rows.shape[0], segments=segments, scaling=[1.0, 2.0], dropout=[0.4, 0.4], seeds=[1, 2],
            global_batches=[0, 0], token_index=token_index, device=device,
        )  # fmt: skip
        return fused.fused_linears(
            rows, values["weights"], values["biases"], values["lora_a"], values["lora_b"], routing=routing, targets=[3]
        )

    def segment(first: int, rows: int, adapter: int) -> Segment:
        return Segment(first_row=first, num_rows=rows, adapter=adapter)

    x = values["x"].detach()
    whole = output(x, [segment(0, 60, 0)], index)
    first = output(x[:23], [segment(0, 23, 0)], index[:23])
    beside = torch.cat([x[:10], x[23:]])
    second = output(beside, [segment(0, 10, 1), segment(10, 37, 0)], torch.cat([index[:10], index[23:]]))
    torch.testing.assert_close(torch.cat([first, second[10:]]), whole, rtol=1e-5, atol=1e-5)


def test_forward_and_both_gradients_see_the_same_mask(device: str) -> None:
    """With A = identity and B = identity, y - x W^T is the dropped input itself, and dx - dy W its mask again."""
    k, p = 64, 0.3
    routing = Routing.build(
        num_rows=40, segments=[Segment(first_row=0, num_rows=40, adapter=0)], scaling=[1.0], dropout=[p], seeds=[5],
        global_batches=[2], device=device,
    )  # fmt: skip
    x = torch.ones(40, k, device=device, requires_grad=True)
    eye = torch.eye(k, device=device)
    a, b = eye.clone().requires_grad_(), eye.clone().requires_grad_()
    y = fused.fused_linears(x, [0 * eye], [None], [[a]], [[b]], routing=routing, targets=[9])
    torch.autograd.backward(y, torch.ones_like(y))
    keep = dropout_mask(
        seed=5, global_batch=2, target=9, token_index=torch.arange(40), num_features=k, dropout=p
    ).float() / (1 - p)
    assert x.grad is not None
    assert a.grad is not None
    torch.testing.assert_close(y.detach().cpu(), keep)
    torch.testing.assert_close(x.grad.cpu(), keep)
    torch.testing.assert_close(a.grad.cpu(), keep.sum(dim=0).expand(k, k))


def test_dropout_hits_the_lora_branch_only() -> None:
    case = Case(
        num_rows=30, num_features=32, out_features=(16,), segments=((0, 30, 0),), lora_ranks=((4,),), dropout=(0.5,)
    )
    values = rounded(case.inputs(), torch.float64)
    values["lora_b"] = [[torch.zeros(16, 4, dtype=torch.float64)]]
    y = reference.multi_lora_linears(
        values["x"], values["weights"], [None], values["lora_a"], values["lora_b"], routing=case.routing(), targets=[0]
    )
    torch.testing.assert_close(y, values["x"] @ values["weights"][0].t())


def test_one_adapters_dropout_may_be_zero_beside_anothers() -> None:
    case = Case(
        num_rows=30, num_features=32, out_features=(16,), segments=((0, 15, 0), (15, 15, 1)),
        lora_ranks=((4, 4),), dropout=(0.0, 0.5),
    )  # fmt: skip
    values = rounded(case.inputs(), torch.float64)
    arguments = (values["x"], values["weights"], [None], values["lora_a"], values["lora_b"])
    with_both = reference.multi_lora_linears(*arguments, routing=case.routing(), targets=[0])
    without = dataclasses.replace(case, dropout=(0.0, 0.0)).routing()
    plain = reference.multi_lora_linears(*arguments, routing=without, targets=[0])
    assert torch.equal(with_both[:15], plain[:15])
    assert not torch.equal(with_both[15:], plain[15:])
