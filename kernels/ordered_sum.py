"""A sum of numbers one after another, so that adding a list in pieces gives the bits of adding it at once."""

from __future__ import annotations

import torch
from torch import Tensor

from .streams import on_device


def ordered_sum(values: Tensor, *, start: Tensor) -> Tensor:
    """`start` plus `values[0]`, plus `values[1]` and so on: float64 `[n]` and a float64 scalar -> a scalar.

    `torch.sum` and `torch.cumsum` add in a tree, whose shape depends on the length. One launch on a CUDA device; nobody
    waits for it. Raises `ValueError` where the two are not float64 on one device.
    """
    if values.dtype is not torch.float64 or start.dtype is not torch.float64 or values.device != start.device:
        raise ValueError(
            f"ordered_sum: values are {values.dtype} on {values.device}, start is {start.dtype} on {start.device}; "
            "give float64 on one device"
        )
    if values.device.type != "cuda":
        total = float(start.item())
        for value in values.tolist():
            total += value
        return torch.tensor(total, dtype=torch.float64)
    from .ordered_sum_kernel import launch_ordered_sum

    with on_device(values.device):
        return launch_ordered_sum(values.contiguous(), start)
