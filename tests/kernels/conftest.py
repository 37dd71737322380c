"""Unwritten memory is NaN, so that no kernel leans on it; without a GPU they run interpreted (tests/conftest.py)."""

from collections.abc import Callable

import pytest
import torch

GPU = torch.cuda.is_available()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Each test runs interpreted on the CPU, and natively with `pytest -m gpu`."""
    if request.param == "cpu" and GPU:
        pytest.skip("the interpreter is for machines without a GPU")
    chosen: str = request.param
    return chosen


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` returns NaN, and bytes that are NaN in whatever floating dtype they are read."""
    empty: Callable[..., torch.Tensor] = torch.empty

    def poisoned(*args: object, **kwargs: object) -> torch.Tensor:
        made = empty(*args, **kwargs)
        with torch.no_grad():
            if made.is_meta:
                return made
            if made.dtype == torch.uint8:
                return made.fill_(255)
            return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
