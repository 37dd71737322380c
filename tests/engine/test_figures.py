"""Numbers come from the device in order, and nobody waits for them."""

from itertools import pairwise

import pytest
import torch

from loraplex.engine.figures import Figures


def values(*numbers: float, device: str = "cpu") -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64, device=device)


def test_on_a_cpu_they_are_told_at_once() -> None:
    heard: list[tuple[list[float], float]] = []
    figures = Figures()
    figures.begin(torch.device("cpu"))
    figures.send(values(1.0, 2.0), lambda known, ms: heard.append((known, ms)))
    ((known, ms),) = heard
    assert known == [1.0, 2.0]
    assert ms >= 0


def busy(cycles: int) -> None:
    """Keep the device at work."""
    torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]


@pytest.mark.gpu
def test_the_host_does_not_wait_for_the_device() -> None:
    heard: list[tuple[list[float], float]] = []
    figures = Figures()
    figures.begin(torch.device("cuda"))
    ready = [values(float(number), device="cuda") for number in range(5)]
    for number, own in enumerate(ready):
        busy(200_000_000)
        figures.send(own, lambda known, ms: heard.append((known, ms)))
        if number == 0:
            assert heard == []
    figures.flush()
    assert [known for known, _ in heard] == [[float(number)] for number in range(5)]
    assert all(one < later for (_, one), (_, later) in pairwise(heard))


@pytest.mark.gpu
def test_the_queue_is_bounded() -> None:
    heard: list[list[float]] = []
    figures = Figures()
    figures.begin(torch.device("cuda"))
    own = values(1.0, device="cuda")
    busy(1_000_000_000)
    for _ in range(80):
        figures.send(own, lambda known, ms: heard.append(known))
    assert len(heard) >= 16
