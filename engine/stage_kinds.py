"""What a GPU is measured with: the kinds of stage, and what all of them share."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..planner.jobs import LoraSettings
from ..traces.costs import RecomputeMode
from ..traces.memory_costs import RECOMPUTE_MODES
from .model import Layout
from .profile_conditions import Condition
from .transport import Transport
from .weight_source import WeightSource

_SOME = 3
"""Every third microbatch is enough for what differs from a stage that all of them have been through."""
_DEEP = 2
"""Every second for the same stage with more layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageKind:
    """One kind of stage to measure."""

    piece: str
    layers: int
    recompute: RecomputeMode = "none"
    with_adapters: bool = True
    every: int = _SOME
    """1: on all microbatches; n: on every n-th."""
    with_pieces: bool = False
    """Whether the parts of its first layer are measured too."""

    def layout(self) -> Layout:
        """Where it stands in a pipeline of three."""
        place = {"first": 0, "last": 2}.get(self.piece, 1)
        return Layout(stage=place, num_stages=3, first_layer=0, end_layer=self.layers)

    def module(self) -> tuple[str, int]:
        """Equal for kinds that one stage can serve."""
        return self.piece, self.layers

    def share(self) -> float:
        """About what a round of it takes, next to other kinds."""
        return self.layers / self.every


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticBytes:
    """What a stage holds when no microbatch is in it."""

    kind: StageKind
    weight_bytes: int
    adapter_parameters: int
    """Of all adapters together."""
    num_adapters: int
    held_bytes: int
    """By the allocator, optimizer state and packed copies included; 0 where nobody counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is measured, and where."""

    folder: Path
    weights: WeightSource
    device: torch.device
    loras: tuple[LoraSettings, ...]
    conditions: tuple[Condition, ...]
    transport: Transport
    num_workers: int
    seconds: float
    """About what all of it may take once kernels are compiled, if that affords the least rounds."""
    tell: Callable[[str], None]
    """Hears where the time went."""


def stage_kinds(depths: Sequence[int]) -> Iterator[StageKind]:
    """All that are measured, for stages of these depths (layers)."""
    shallow = min(depths)
    for recompute in RECOMPUTE_MODES:
        every = 1 if recompute == "none" else _SOME
        yield StageKind(piece="stage", layers=shallow, recompute=recompute, every=every)
    for layers in depths[1:]:
        yield StageKind(piece="stage", layers=layers, every=_DEEP)
    yield StageKind(piece="first", layers=shallow)
    yield StageKind(piece="last", layers=shallow)
    for layers in depths:
        yield StageKind(piece="frozen", layers=layers, with_adapters=False, with_pieces=layers == shallow)
