"""For all tests: no test fails for being slow, and where there is no GPU, Triton's kernels run through its interpreter.

Triton reads the variable when it is first imported, which tests of other rooms may do before those of the kernels.
Where there is one, to ask for it must not start CUDA: the transports' tests fork.
"""

import os

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Machines that run the tests are shared: an example that takes 30 ms alone was seen to take 288.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The transports' tests come first: their processes are forks, which must be made before CUDA starts here."""
    items.sort(key=lambda item: item.path.name != "test_transport.py")
