"""Where launches go: the tensors' own device, and a second stream beside the product on the current one."""

from __future__ import annotations

import contextlib
import functools
import threading
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


def wait(behind: torch.cuda.Stream, ahead: torch.cuda.Stream) -> None:
    """What is launched on `behind` from now on starts after what `ahead` holds now; a fork or a join under capture.

    `Stream.wait_stream` makes an event each time; here one serves all waits of a device, since a wait means the state
    recorded last before it.
    """
    if torch.cuda.is_current_stream_capturing():
        behind.wait_stream(ahead)
        return
    event, lock = _shared_event(ahead.device)
    with lock:
        event.record(ahead)
        behind.wait_event(event)


@functools.cache
def _shared_event(_device: torch.device) -> tuple[torch.cuda.Event, threading.Lock]:
    return torch.cuda.Event(), threading.Lock()  # type: ignore[no-untyped-call]
