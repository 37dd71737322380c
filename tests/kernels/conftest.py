"""Without a GPU the kernels run through Triton's interpreter; unwritten memory is NaN, so that nobody leans on it."""

import os

import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Each test runs interpreted on the CPU, and natively with `pytest -m gpu`."""
    if request.param == "cpu" and GPU:
        pytest.skip("the interpreter is for machines without a GPU")
    return request.param


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """`torch.empty` returns NaN."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        made = empty(*args, **kwargs)
        with torch.no_grad():
            return made.fill_(float("nan")) if made.is_floating_point() and not made.is_meta else made

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
