"""Adding in order: the bits of a plain loop, whole or in pieces."""

import pytest
import torch

from loraplex.kernels.ordered_sum import ordered_sum
from loraplex.kernels.ordered_sum_kernel import launch_ordered_sum


def numbers(count: int) -> torch.Tensor:
    """Of very different sizes, so that another order gives other bits."""
    generator = torch.Generator().manual_seed(count)
    exponents = torch.randint(-20, 20, (count,), generator=generator)
    return torch.rand(count, generator=generator, dtype=torch.float64) * 2.0**exponents


@pytest.mark.parametrize("count", [0, 1, 7, 448])
def test_the_kernel_adds_one_after_another(device: str, count: int) -> None:
    values, total = numbers(count), 1 / 3
    for value in values.tolist():
        total += value
    start = torch.full((), 1 / 3, dtype=torch.float64, device=device)
    assert launch_ordered_sum(values.to(device), start).item() == total
    assert ordered_sum(values.to(device), start=start).item() == total


def test_pieces_give_the_bits_of_the_whole(device: str) -> None:
    values, zero = numbers(100).to(device), torch.zeros((), dtype=torch.float64, device=device)
    whole = ordered_sum(values, start=zero)
    for cut in (1, 37, 99):
        assert torch.equal(ordered_sum(values[cut:], start=ordered_sum(values[:cut], start=zero)), whole)
    # The test could fail: in another order the bits are others.
    assert not torch.equal(ordered_sum(values.flip(0), start=zero), whole)


def test_what_is_no_number_comes_through(device: str) -> None:
    values = torch.tensor([1.0, float("nan"), 2.0], dtype=torch.float64, device=device)
    assert ordered_sum(values, start=torch.zeros((), dtype=torch.float64, device=device)).isnan()


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"values are torch.float32 on cpu, .*; give float64 on one device"):
        ordered_sum(torch.ones(3), start=torch.zeros((), dtype=torch.float64))
