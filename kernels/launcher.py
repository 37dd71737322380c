"""Triton's C launcher, reached past the Python before it, and tensor descriptors that are filled once an address.

Triton's own launcher goes over every argument, fills each descriptor anew and passes all of them on twice, which takes
the host as long as the launch. What is reached into here is private to Triton: where it does not look exactly as in the
versions that this was tried with, kernels are launched by Triton's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import triton
from triton.tools.tensor_descriptor import TensorDescriptor

FLAT, PACKED = "3.6.", "3.7."
"""Versions whose C launcher takes a kernel's arguments one by one, or as one list behind their kinds."""

MOST_KEPT = 4096
"""Of a kernel's descriptors of one shape (some 400 bytes each): more than a model has weights of it."""
MOST_SHAPES = 256
"""Of a kernel: microbatches of every length bring their own, of which each is filled for every layer's addresses. What
is dropped here lives as long as the plans that use it."""

Start = Callable[[int, int, int, int, list[Any]], None]
"""Of a grid's three sizes, the stream's handle, and all of the kernel's arguments and constants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class At:
    """Stands for a tensor where Triton asks for nothing but its address."""

    address: int

    def data_ptr(self) -> int:
        return self.address


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptors:
    """Filled descriptors of tensors of one shape. Nothing of a tensor but its address is in one."""

    tile: TensorDescriptor
    """Without its tensor."""
    fill: Callable[[Any], Any]
    made: dict[int, Any] = field(default_factory=dict)

    def at(self, address: int) -> Any:
        found = self.made.get(address)
        if found is None:
            if len(self.made) >= MOST_KEPT:
                self.made.clear()
            found = self.made[address] = self.fill(rebased(self.tile, At(address=address)))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Launcher:
    """Launches one compiled kernel."""

    start: Start
    fills: tuple[Callable[[Any], Any], ...] | None
    """What fills the descriptors among its arguments, in order; None: `start` takes descriptors as they are."""
    kept: dict[tuple[Any, ...], Descriptors] = field(default_factory=dict)

    def descriptors(self, position: int, tile: TensorDescriptor) -> Descriptors:
        """Those of the kernel's descriptor number `position` for tensors of this shape."""
        assert self.fills is not None
        key = (position, *tile.shape, *tile.strides)
        found = self.kept.get(key)
        if found is None:
            if len(self.kept) >= MOST_SHAPES:
                self.kept.clear()
            found = self.kept[key] = Descriptors(tile=rebased(tile, None), fill=self.fills[position])
        return found


def launcher_of(run: Any, function: int, metadata: Any) -> Launcher:
    """Of a loaded kernel's `run`, `function` and `packed_metadata`."""
    return _direct(run, function, metadata) or Launcher(start=_by_triton(run, function, metadata), fills=None)


def _by_triton(run: Any, function: int, metadata: Any) -> Start:
    def start(x: int, y: int, z: int, stream: int, arguments: list[Any]) -> None:
        # what Triton's own runner does, less the three for hooks
        run(x, y, z, stream, function, metadata, None, None, None, *arguments)

    return start


def _direct(run: Any, function: int, metadata: Any) -> Launcher | None:
    """None where this Triton is not known, or the kernel wants memory of its own, which its Python allocates."""
    if type(run).__module__ != "triton.backends.nvidia.driver" or not triton.__version__.startswith((FLAT, PACKED)):
        return None
    # of another version these attributes need not be there
    if run.global_scratch_size or run.profile_scratch_size:
        return None
    launch, metas = run.launch, ()
    if isinstance(launch, FunctionType):
        # wrapped for descriptors
        inside = inspect.getclosurevars(launch).nonlocals
        if not {"launcher", "tensordesc_meta"} <= inside.keys() or None in inside["tensordesc_meta"]:
            return None
        launch, metas = inside["launcher"], tuple(inside["tensordesc_meta"])
    return Launcher(start=_start(run, launch, function, metadata), fills=tuple(map(_filling, metas)))


def _start(run: Any, launch: Callable[..., None], function: int, metadata: Any) -> Start:
    cooperative, dependent = run.launch_cooperative_grid, run.launch_pdl
    if triton.__version__.startswith(FLAT):

        def flat(x: int, y: int, z: int, stream: int, arguments: list[Any]) -> None:
            launch(
                x, y, z, stream, function, cooperative, dependent, None, None, metadata, None, None, None, *arguments
            )

        return flat
    kinds, signature = run.arg_annotations, run.kernel_signature

    def packed(x: int, y: int, z: int, stream: int, arguments: list[Any]) -> None:
        launch(
            x, y, z, stream, function, cooperative, dependent, metadata, None, None, None, None, None, kinds,
            signature, arguments,
        )  # fmt: skip

    return packed


def _filling(meta: Any) -> Callable[[Any], Any]:
    from triton.backends.nvidia.driver import make_tensordesc_arg

    def fill(tile: Any) -> Any:
        # behind it come the shape and the strides
        return make_tensordesc_arg(tile, meta)[0]

    return fill


def rebased(tile: TensorDescriptor, base: Any) -> TensorDescriptor:
    """The descriptor for another tensor of the same shape and alignment, without its checks."""
    moved = object.__new__(TensorDescriptor)
    moved.__dict__.update(tile.__dict__)
    moved.base = base
    return moved
