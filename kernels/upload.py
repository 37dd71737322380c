"""From the host to a device without making the host wait: the only place in kernels and engine that does it.

A copy from ordinary (pageable) memory waits until the stream has come to it, and a host that waits launches nothing. A
copy from pinned memory is only put into the stream. tests/test_host_copies.py keeps everyone else from doing either.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .sizes import ALIGNMENT_BYTES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

HostArray = NDArray[Any]
"""Of a dtype that torch knows by the same name, its values one after another in memory."""


def to_device(values: Sequence[HostArray | Tensor], device: torch.device | str) -> tuple[Tensor, ...]:
    """Tensors of these values on `device`; arrays travel as one buffer, in one copy on the current stream.

    They become slices of it, so they live as long as the last of them. A tensor that is there already is taken as it
    is. Other streams have to wait for the current one before they read. Raises `RuntimeError` under graph capture.
    """
    import torch

    target = torch.device(device)
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    sent = iter(split(send(arrays, target), arrays))
    return tuple(next(sent) if isinstance(value, np.ndarray) else value.to(target) for value in values)


def send(arrays: Sequence[HostArray], device: torch.device) -> Tensor:
    """What `joined` makes of the arrays, on a device: `split` gives them back. Raises as `to_device`."""
    if device.type == "cuda" and arrays:
        _refuse_capture()
    # torch's allocator of pinned memory notes this copy and hands the buffer out again only once it is through
    # (CachingHostAllocator), so it may be let go here.
    return joined(arrays, pinned=device.type == "cuda").to(device, non_blocking=True)


def write(target: Tensor, values: Tensor) -> None:
    """Copy values of the same shape and dtype into a tensor that stays where it is, on the current stream.

    Raises `RuntimeError` for values of the host under graph capture.
    """
    if target.device.type == "cuda" and values.device.type == "cpu":
        _refuse_capture()
        # as above: let go here, handed out again once the copy is through
        values = values.pin_memory()
    target.copy_(values, non_blocking=True)


def joined(arrays: Sequence[HostArray], *, pinned: bool = False) -> Tensor:
    """uint8 `[bytes]`: the arrays one after another, each from a multiple of `ALIGNMENT_BYTES` on."""
    import torch

    content = b"".join(part for array in arrays for part in (array.data, bytes(_padding_bytes(array))))
    buffer = torch.empty(len(content), dtype=torch.uint8, pin_memory=pinned)
    buffer.numpy()[:] = np.frombuffer(content, np.uint8)
    return buffer


def split(buffer: Tensor, like: Sequence[HostArray]) -> list[Tensor]:
    """What `joined` put into a buffer: views of it, shaped as the arrays in `like`."""
    import torch

    parts = torch.split_with_sizes(buffer, [size for array in like for size in (array.nbytes, _padding_bytes(array))])
    typed = [part.view(_dtype(array.dtype)) for part, array in zip(parts[::2], like, strict=True)]
    return [part if array.ndim == 1 else part.view(array.shape) for part, array in zip(typed, like, strict=True)]


def num_bytes(arrays: Sequence[HostArray]) -> int:
    """Of what `joined` makes of them."""
    return sum(array.nbytes + _padding_bytes(array) for array in arrays)


def _padding_bytes(array: HostArray) -> int:
    # a row of a table is one load, from an address as compiled kernels were promised
    return -array.nbytes % ALIGNMENT_BYTES


@functools.cache
def _dtype(dtype: np.dtype[Any]) -> torch.dtype:
    import torch

    found: torch.dtype = getattr(torch, dtype.name)
    return found


def _refuse_capture() -> None:
    import torch

    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "host data was to be sent to the GPU under graph capture, but replays would send whatever lies there by "
            "then: run the same call once before the capture, on the same routing"
        )
