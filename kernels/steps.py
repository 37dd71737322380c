"""What a plan consists of: allocations, launches, calls of the library, and waits of one stream for another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .launcher import Descriptors, Start, rebased
from .launching import INTERPRETED, pointer_to
from .sizes import round_up
from .streams import side_stream, wait

ROOM_ALIGNMENT_BYTES = 512
"""As torch's allocator aligns what it hands out."""


@dataclass(slots=True, kw_only=True)
class Run:
    """One playing of a plan: what lies in each slot, and how a kernel is given it."""

    values: list[Any]
    pointers: list[Any]
    """Addresses; under the interpreter, which reads tensors, the tensors."""
    device: torch.device
    stream: int


class Step(Protocol):
    def __call__(self, run: Run) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Empty:
    slot: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __call__(self, run: Run) -> None:
        made = torch.empty(self.shape, dtype=self.dtype, device=run.device)
        run.values[self.slot] = made
        run.pointers[self.slot] = pointer_to(made)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in a `Room` what lies in a slot begins."""

    slot: int
    first_byte: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Memory for all that kernels alone hand to each other, in one allocation: each takes the host 8 us (H100,
    under cProfile, 2026-11-26). It is let go when the playing ends, as one by one they would be."""

    slot: int
    """Of the whole, which has to live as long as its parts are used."""
    places: tuple[Place, ...]
    num_bytes: int

    def __call__(self, run: Run) -> None:
        room = run.values[self.slot] = torch.empty(self.num_bytes, dtype=torch.uint8, device=run.device)
        if INTERPRETED:
            for place in self.places:
                run.pointers[place.slot] = _part(room, place)
            return
        address = room.data_ptr()
        for place in self.places:
            run.pointers[place.slot] = address + place.first_byte


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    start: Start
    grid: tuple[int, int, int]
    template: list[Any]
    """Every argument of the kernel in order, constants too; None in the holes."""
    holes: tuple[tuple[int, int], ...]
    """(place among the arguments, slot)."""
    filled: tuple[tuple[int, int, Descriptors], ...]
    """(place, slot, descriptors by address)."""
    tiles: tuple[tuple[int, int, TensorDescriptor], ...]
    """(place, slot, descriptor without its tensor), where Triton fills them."""
    stream: int | None
    """None: the current one."""
    keep: tuple[Tensor, ...]
    """Tensors whose addresses stand in the template."""

    def __call__(self, run: Run) -> None:
        arguments, pointers = self.template.copy(), run.pointers
        for place, slot in self.holes:
            arguments[place] = pointers[slot]
        for place, slot, descriptors in self.filled:
            arguments[place] = descriptors.at(pointers[slot])
        for place, slot, tile in self.tiles:
            arguments[place] = rebased(tile, run.values[slot])
        x, y, z = self.grid
        self.start(x, y, z, run.stream if self.stream is None else self.stream, arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryCall:
    function: Callable[..., None]
    slots: tuple[int, ...]

    def __call__(self, run: Run) -> None:
        self.function(*[run.values[slot] for slot in self.slots])


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """One stream waits for where the other stands now; under graph capture a fork or a join."""

    side_waits: bool

    def __call__(self, run: Run) -> None:
        current, side = torch.cuda.current_stream(run.device), side_stream(run.device)
        if self.side_waits:
            wait(side, current)
        else:
            wait(current, side)


def with_room(steps: Sequence[Step], seen: set[int | None], *, slot: int) -> tuple[Step, ...]:
    """The steps with one allocation, kept in `slot`, in place of those whose tensors are not `seen`."""
    places: list[Place] = []
    others: list[Step] = []
    num_bytes = 0
    for step in steps:
        if not isinstance(step, Empty) or step.slot in seen:
            others.append(step)
            continue
        places.append(Place(slot=step.slot, first_byte=num_bytes, shape=step.shape, dtype=step.dtype))
        own_bytes = math.prod(step.shape) * step.dtype.itemsize
        num_bytes += round_up(own_bytes, ROOM_ALIGNMENT_BYTES)
    if not places:
        return tuple(others)
    # first of all: memory is made before a fork (`Tape.empty`)
    return Room(slot=slot, places=tuple(places), num_bytes=num_bytes), *others


def _part(room: Tensor, place: Place) -> Tensor:
    num_bytes = math.prod(place.shape) * place.dtype.itemsize
    return room[place.first_byte : place.first_byte + num_bytes].view(place.dtype).view(place.shape)
