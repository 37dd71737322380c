"""For all tests: where there is no GPU, Triton's kernels run through its interpreter.

Triton reads the variable when it is first imported, which tests of other rooms may do before those of the kernels.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
