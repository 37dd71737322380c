"""From the host to a device without making the host wait: the only place in kernels and engine that does it.

A copy from ordinary (pageable) memory waits until the stream has come to it, and a host that waits launches nothing. A
copy from pinned memory is only put into the stream. tests/test_host_copies.py keeps everyone else from doing either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .sizes import ALIGNMENT_BYTES, round_up

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def to_device(tensors: Sequence[Tensor], device: torch.device | str) -> tuple[Tensor, ...]:
    """The same tensors on `device`; those of the host travel as one buffer, in one copy on the current stream.

    They are slices of it, so they live as long as the last of them. What is on a device already is taken as it is.
    Other streams have to wait for the current one before they read. Raises `RuntimeError` under graph capture.
    """
    import torch

    target = torch.device(device)
    on_host = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    if target.type == "cpu" or not on_host:
        return tuple(tensor.to(target) for tensor in tensors)
    if target.type == "cuda":
        _refuse_capture()
    buffer = joined(on_host, pinned=target.type == "cuda")
    # torch's allocator of pinned memory notes this copy and hands the buffer out again only once it is through
    # (CachingHostAllocator), so it may be let go here.
    sent = iter(split(buffer.to(target, non_blocking=True), on_host))
    return tuple(next(sent) if tensor.device.type == "cpu" else tensor.to(target) for tensor in tensors)


def write(target: Tensor, values: Tensor) -> None:
    """Copy values of the same shape and dtype into a tensor that stays where it is, on the current stream.

    Raises `RuntimeError` for values of the host under graph capture.
    """
    if target.device.type == "cuda" and values.device.type == "cpu":
        _refuse_capture()
        # as above: let go here, handed out again once the copy is through
        values = values.pin_memory()
    target.copy_(values, non_blocking=True)


def joined(tensors: Sequence[Tensor], *, pinned: bool = False) -> Tensor:
    """uint8 `[bytes]`: the tensors one after another, each from a multiple of `ALIGNMENT_BYTES` on."""
    import torch

    sizes = [_room_bytes(tensor) for tensor in tensors]
    buffer = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=pinned)
    for place, tensor in zip(torch.split(buffer, sizes), tensors, strict=True):
        place[: tensor.nbytes].copy_(tensor.reshape(-1).view(torch.uint8))
    return buffer


def split(buffer: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that `joined` put into a buffer: views of it, shaped as those in `like`."""
    import torch

    places = torch.split(buffer, [_room_bytes(tensor) for tensor in like])
    return [
        place[: tensor.nbytes].view(tensor.dtype).view(tensor.shape) for place, tensor in zip(places, like, strict=True)
    ]


def _room_bytes(tensor: Tensor) -> int:
    # a row of a table is one load, from an address as compiled kernels were promised
    return round_up(tensor.nbytes, ALIGNMENT_BYTES)


def _refuse_capture() -> None:
    import torch

    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "host data was to be sent to the GPU under graph capture, but replays would send whatever lies there by "
            "then: run the same call once before the capture, on the same routing"
        )
