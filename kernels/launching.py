"""Launching a Triton kernel without asking Triton each time which compiled one the arguments want.

Its own way (`kernel[grid](...)`) binds, specialises and looks up anew at every launch, which takes the host longer than
the launch itself. Here what a compiled kernel depends on is a key of our own, at least as fine as Triton's: a kernel
found under it is the one that Triton would have found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

ALIGNMENT_BYTES = 16
"""Kernels are compiled for addresses, and for numbers, that are multiples of it or are not."""
INTERPRETED = triton.knobs.runtime.interpret
"""Under Triton's interpreter kernels are Python functions of tensors."""

_COMPILED: dict[tuple[Any, ...], Any] = {}
"""By kernel, device, options and kinds of the arguments. Kernels are made once, at import, and so are few."""
_INT32, _INT64 = 2**31, 2**63


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Any, device: torch.device, constants: Mapping[str, Any],
    options: Mapping[str, Any],
) -> None:  # fmt: skip
    """`kernel[grid](*arguments, **constants, **options)` on the current stream of `device`, which is the current one.

    `constants` are all of the kernel's parameters behind the arguments.
    """
    if INTERPRETED:
        kernel[grid](*arguments, **constants, **options)
        return
    fixed = constants_in_order(kernel, arguments, constants)
    runner = runner_of(kernel, grid, arguments, fixed, device=device, options=options)
    runner(*arguments, *fixed, stream=current_stream(device))


def runner_of(
    kernel: Any, grid: tuple[int, ...], arguments: Sequence[Any], constants: Sequence[Any], *, device: torch.device,
    options: Mapping[str, Any],
) -> Callable[..., None]:  # fmt: skip
    """Launches that kernel, over that grid, on any arguments of the same kinds and on those constants.

    Compiles it where it is the first of its kind.
    """
    key = (id(kernel), device.index, *options.items(), *constants, *map(kind, arguments))
    found = _COMPILED.get(key)
    if found is None:
        # as Triton's tutorial on persistent softmax does: compile ahead, then launch the compiled kernel by its grid
        found = _COMPILED[key] = kernel.warmup(*arguments, *constants, grid=grid, **options)
    runner: Callable[..., None] = found[(*grid, 1, 1)[:3]]
    return runner


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
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % ALIGNMENT_BYTES == 0
    if type(argument) is int:
        # Of 1 and of multiples of 16 it knows; the type follows from the size.
        return int, argument == 1, argument % ALIGNMENT_BYTES == 0, -_INT32 <= argument < _INT32, argument < _INT64
    if isinstance(argument, TensorDescriptor):
        return argument.base.dtype, *argument.block_shape, argument.padding
    # Of a float it knows that it is one. Whatever else there may be is its own kind.
    return float if type(argument) is float else (type(argument), argument)
