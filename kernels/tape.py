"""Passes that run once as written and are then replayed: allocations, launches and library calls in order.

Triton's own way to a launch works out every argument's type and divisibility again, and a linear of a model runs ten of
them with arguments that change in nothing but addresses. A tape keeps each compiled kernel with its
grid and its arguments, and holes where tensors of the call go. A plan may be replayed wherever everything else is the
same, which is its key's business (`passes.py`): shapes, strides, dtypes, and addresses that are multiples of 16.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .launcher import Descriptors, rebased
from .launching import INTERPRETED, constants_in_order, current_stream, pointer_to, starter_of, three
from .sizes import ALIGNMENT_BYTES
from .steps import Empty, Launch, LibraryCall, Run, Step, Wait, with_room
from .streams import side_stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """Stands for what lies in a slot: for a number that is the call's own, where a tensor is known by its identity."""

    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A tape's steps, to be played on other inputs of the same kind."""

    steps: tuple[Step, ...]
    num_slots: int
    outputs: tuple[int | None, ...]
    kept: object
    """What the plan's key names by identity."""

    def play(self, inputs: Sequence[Any], pointers: list[Any], device: torch.device) -> tuple[Any, ...]:
        missing = self.num_slots - len(inputs)
        run = Run(
            values=[*inputs, *[None] * missing], pointers=pointers + [None] * missing, device=device,
            stream=current_stream(device),
        )  # fmt: skip
        for step in self.steps:
            step(run)
        return tuple([None if slot is None else run.values[slot] for slot in self.outputs])


class Tape:
    """Runs what it is told to at once, and remembers it."""

    def __init__(self, inputs: Sequence[Any], *, num_words: int, device: torch.device) -> None:
        """Give tensors, None and others, no tensor twice (`distinct`); the last `num_words` are the targets' words."""
        first_word = len(inputs) - num_words
        self.words = tuple(Hole(slot=slot) for slot in range(first_word, len(inputs)))
        self.device = device
        pointers, _ = pointers_of(inputs)
        self.run = Run(values=list(inputs), pointers=pointers, device=device, stream=current_stream(device))
        self.steps: list[Step] = []
        self.slots = {id(value): slot for slot, value in enumerate(inputs) if value is not None}
        self.fixed_ids: dict[int, Tensor] = {}
        self.seen: set[int | None] = set()
        """Slots whose tensors are used as such, not by their addresses alone."""
        self.beside = False

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory of the current stream; made before a fork, a pass on the side stream may use it until the join."""
        assert not self.beside, "made after the fork, this memory may still be written by the current stream"
        slot = len(self.run.values)
        self.run.values.append(None)
        self.run.pointers.append(None)
        self._do(Empty(slot=slot, shape=shape, dtype=dtype))
        made: Tensor = self.run.values[slot]
        self.slots[id(made)] = slot
        return made

    def fixed(self, tensor: Tensor) -> Tensor:
        """A tensor that every playing of the plan shares, as the tables of a routing; any other must have a slot."""
        self.fixed_ids[id(tensor)] = tensor
        return tensor

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """A function of inputs and of what `empty` gave, on the current stream."""
        slots = tuple(self.slots[id(argument)] for argument in arguments)
        self.seen.update(slots)
        self._do(LibraryCall(function=function, slots=slots))

    def launch(
        self, kernel: Any, grid: tuple[int, ...], *arguments: Any, constants: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """`kernel[grid](*arguments, **constants, **options)`; `constants` holds the rest of its parameters."""
        fixed = constants_in_order(kernel, arguments, constants)
        bound = [self.run.values[argument.slot] if type(argument) is Hole else argument for argument in arguments]
        start, launcher = starter_of(kernel, grid, bound, fixed, device=self.device, options=options)
        template: list[Any] = []
        filled: list[tuple[int, int, Descriptors]] = []
        holes, tiles, keep = [], [], []
        for argument in arguments:
            place = len(template)
            if type(argument) is int:
                # most are, so asked first
                template.append(argument)
            elif isinstance(argument, Tensor):
                slot = self.slots.get(id(argument))
                if slot is None:
                    keep.append(self.fixed_ids[id(argument)])
                    template.append(pointer_to(argument))
                else:
                    holes.append((place, slot))
                    template.append(None)
            elif isinstance(argument, TensorDescriptor):
                slot = self.slots[id(argument.base)]
                template.append(None)
                if launcher is None:
                    self.seen.add(slot)
                    tiles.append((place, slot, rebased(argument, None)))
                else:
                    filled.append((place, slot, launcher.descriptors(len(filled), argument)))
                    template += [*argument.shape, *argument.strides]
            elif isinstance(argument, Hole):
                holes.append((place, argument.slot))
                template.append(None)
            else:
                template.append(argument)
        self._do(
            Launch(
                start=start, grid=three(grid), template=template + fixed, holes=tuple(holes), filled=tuple(filled),
                tiles=tuple(tiles), keep=tuple(keep),
                stream=side_stream(self.device).cuda_stream if self.beside else None,
            )
        )  # fmt: skip

    @contextlib.contextmanager
    def side(self, *, enabled: bool) -> Iterator[contextlib.AbstractContextManager[None]]:
        """Yields a context whose launches go to a second stream, which starts from where the current one stands now.

        The current stream waits for it at the end of the block.
        """
        if self.device.type == "cuda":
            # made now, since a later call of this kind may be under graph capture, where nothing should be created
            side_stream(self.device)
        if not enabled or self.device.type != "cuda":
            yield contextlib.nullcontext()
            return
        self._do(Wait(side_waits=True))
        yield self._aside()
        self._do(Wait(side_waits=False))

    def plan(self, outputs: Sequence[Tensor | None], *, kept: object) -> Plan:
        slots = tuple(None if output is None else self.slots[id(output)] for output in outputs)
        steps = with_room(self.steps, self.seen.union(slots), slot=len(self.run.values))
        return Plan(steps=steps, num_slots=len(self.run.values) + 1, kept=kept, outputs=slots)

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        self.beside = True
        yield
        self.beside = False

    def _do(self, step: Step) -> None:
        self.steps.append(step)
        step(self.run)


def distinct(inputs: Sequence[Any]) -> list[Any]:
    """The inputs, a tensor's second appearance as another object, so that each is known by its identity."""
    seen: set[int] = set()
    made = []
    for value in inputs:
        if isinstance(value, Tensor) and id(value) in seen:
            value = value.detach()
        seen.add(id(value))
        made.append(value)
    return made


def pointers_of(inputs: Sequence[Any]) -> tuple[list[Any], bool]:
    """(What kernels are given, whether a plan may serve these inputs).

    A compiled kernel was promised addresses that are multiples of 16.
    """
    if INTERPRETED:
        return list(inputs), True
    pointers, aligned = [], True
    for value in inputs:
        pointer = value
        if isinstance(value, Tensor):
            pointer = value.data_ptr()
            aligned = aligned and pointer % ALIGNMENT_BYTES == 0
        pointers.append(pointer)
    return pointers, aligned
