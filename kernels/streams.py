"""Where launches go: the tensors' own device, and a second stream beside the product on the current one."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Launches inside go to `device`, whichever is the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def beside(device: torch.device, *, enabled: bool) -> Iterator[AbstractContextManager[object]]:
    """Yields a context whose launches go to a side stream; the current stream waits for them at the end.

    The side stream starts from where the current one stood on entry. Memory made inside must not outlive the block
    unless made before its end is awaited, which it is: every later user of the current stream comes after the join.
    Works under CUDA graph capture, as a fork and a join.
    """
    if not enabled or device.type != "cuda":
        yield contextlib.nullcontext()
        return
    current = torch.cuda.current_stream(device)
    side = _side_stream(device)
    side.wait_stream(current)
    yield torch.cuda.stream(side)
    current.wait_stream(side)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
