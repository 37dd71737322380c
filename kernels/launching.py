"""Launching a Triton kernel without asking Triton each time which compiled one the arguments want.

Its own way (`kernel[grid](...)`) binds, specialises and looks up anew at every launch, which takes the host longer than
the launch itself. Here what a compiled kernel depends on is a key of our own, at least as fine as Triton's: a kernel
found under it is the one that Triton would have found.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .launcher import Launcher, Start, launcher_of
from .sizes import ALIGNMENT_BYTES

INTERPRETED = triton.knobs.runtime.interpret
"""Under Triton's interpreter kernels are Python functions of tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A compiled kernel on its GPU, and what launches it."""

    compiled: Any
    launcher: Launcher


_LOADED: dict[tuple[Any, ...], Loaded] = {}
"""By kernel, device, options and kinds of the arguments. Kernels are made once, at import, and so are few."""
_LOADING = threading.Lock()
"""Outside of the engine backward passes run in autograd's thread, and Triton loads a kernel in steps: another thread
may see it half done."""


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Any, device: torch.device, constants: Mapping[str, Any],
    options: Mapping[str, Any],
) -> None:  # fmt: skip
    """`kernel[grid](*arguments, **constants, **options)` on the current stream of `device`, which is the current one.

    `constants` are all of the kernel's parameters behind the arguments, which hold no tensor descriptor: those a tape
    launches. Tensors are taken as being on `device`.
    """
    fixed = constants_in_order(kernel, arguments, constants)
    start, _ = starter_of(kernel, grid, arguments, fixed, device=device, options=options)
    given = [pointer_to(argument) if isinstance(argument, Tensor) else argument for argument in arguments]
    start(*three(grid), current_stream(device), given + fixed)


def starter_of(
    kernel: Any, grid: tuple[int, ...], arguments: Sequence[Any], constants: Sequence[Any], *, device: torch.device,
    options: Mapping[str, Any],
) -> tuple[Start, Launcher | None]:  # fmt: skip
    """What launches that kernel on any arguments of the same kinds and on those constants.

    Compiles it where it is the first of its kind. Tensors are given as `pointer_to` says; descriptors as they are, or,
    where there is a launcher, as this says.
    """
    if INTERPRETED:
        return lambda x, y, z, stream, given: kernel[grid](*given, **options), None
    key = (id(kernel), device.index, *options.items(), *constants, *map(kind, arguments))
    found = _LOADED.get(key)
    if found is None:
        with _LOADING:
            found = _LOADED.get(key)
            if found is None:
                # as Triton's tutorial on persistent softmax does: compile ahead, then launch the compiled kernel
                found = _LOADED[key] = load(kernel.warmup(*arguments, *constants, grid=grid, **options))
    if is_watched():
        watched: Callable[..., None] = found.compiled[three(grid)]
        return lambda x, y, z, stream, given: watched(*given, stream=stream), None
    launcher = found.launcher
    return launcher.start, launcher if launcher.fills is not None else None


def three(grid: tuple[int, ...]) -> tuple[int, int, int]:
    """The grid with all its dimensions."""
    x, y, z = (*grid, 1, 1)[:3]
    return x, y, z


def pointer_to(tensor: Tensor) -> Any:
    """What a runner is given for a tensor: its address, or under the interpreter the tensor."""
    # of a tensor Triton's launcher asks the driver at each launch whether the GPU may read it
    return tensor if INTERPRETED else tensor.data_ptr()


def load(compiled: Any) -> Loaded:
    """Onto the current device."""
    # asking for `run` is what loads it: `function` is there only afterwards
    run = compiled.run
    return Loaded(compiled=compiled, launcher=launcher_of(run, compiled.function, compiled.packed_metadata))


def is_watched() -> bool:
    """Whether someone, as Triton's profiler, hooks into launches; plans recorded before that go unseen."""
    hooks = triton.knobs.runtime.launch_enter_hook, triton.knobs.runtime.launch_exit_hook
    # a chain of hooks is there always, mostly an empty one
    return any(hook is not None and getattr(hook, "calls", True) for hook in hooks)


def constants_in_order(kernel: Any, arguments: Sequence[Any], constants: Mapping[str, Any]) -> list[Any]:
    """Those behind the arguments, as the kernel names them."""
    return [constants[name] for name in kernel.arg_names[len(arguments) :]]


def current_stream(device: torch.device) -> int:
    """The handle of a GPU's current stream; 0 on the CPU."""
    if device.type != "cuda":
        return 0
    stream: int = triton.runtime.driver.active.get_current_stream(device.index)
    return stream


def kind(argument: Any) -> Any:
    """All of an argument that a compiled kernel may depend on, and more: equal kinds are one kind to Triton."""
    if type(argument) is int:
        return _kind_of_number(argument)
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % ALIGNMENT_BYTES == 0
    if isinstance(argument, TensorDescriptor):
        return argument.base.dtype, *argument.block_shape, argument.padding
    # Of a float it knows that it is one. Whatever else there may be is its own kind.
    return float if type(argument) is float else (type(argument), argument)


def _kind_of_number(number: int) -> str:
    # Of 1 and of multiples of 16 Triton knows; the type follows from the size.
    if number == 1:
        return "1"
    if -(2**31) <= number < 2**31:
        return "i32" if number % ALIGNMENT_BYTES else "i32, aligned"
    width = "i64" if number < 2**63 else "u64"
    return width if number % ALIGNMENT_BYTES else f"{width}, aligned"
