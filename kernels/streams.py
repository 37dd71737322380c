"""Where launches go: the tensors' own device, and a second stream beside the product on the current one."""

from __future__ import annotations

import contextlib
import functools
from contextlib import AbstractContextManager

import torch


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Launches inside go to `device`, whichever is the current one."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The second stream of a device."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
