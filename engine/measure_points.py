"""Measures a model on a GPU with the engine's own code, into the rows of traces/profile_points.py.

Stages of two depths tell a layer from what stands beside the layers; the other kinds of stage and the pieces of a layer
are measured on some of the microbatches. What a microbatch finds before it, the host ahead or behind, the GPU's clock
high or low, is of another round's order in the next: the median is of all.
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..planner.jobs import LoraSettings
from ..planner.loads import Loads
from ..planner.plan import Plan
from ..planner.program import ActionKind
from ..traces.costs import RecomputeMode
from ..traces.memory_costs import RECOMPUTE_MODES
from ..traces.profile_points import points_table
from .batch import Packer
from .measure import Float, run_round
from .measure_pieces import Call, EagerLora, attention, eager_linears, frozen_linears, frozen_stage, time_pass
from .measure_rounds import repeat, seconds_since
from .memory_recorder import Held, MemoryRecorder
from .model import Layout, StageModel
from .nf4_linear import held_bytes
from .profile_conditions import Condition, PoolTokens, conditions_plan
from .recorder import now_ns
from .stage import Stage, make_stage_of
from .transport import Transport
from .weight_source import WeightSource

_SOME = 3
"""Every third microbatch is enough for what differs from a stage that all of them have been through."""
_DEEP = 2
"""Every second for the same stage with more layers."""
_KINDS = {"forward": ActionKind.FORWARD, "backward": ActionKind.BACKWARD, "step": ActionKind.STEP}


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """All that was measured of a model."""

    table: pd.DataFrame
    static: tuple[StaticBytes, ...]


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


def measure_points(setup: Setup, *, depths: Sequence[int]) -> Measured:
    """Measure stages of these depths (layers); all workers call it together, and keep each other busy as in a run."""
    rows: list[Mapping[str, object]] = []
    static = []
    kinds = tuple(_kinds(depths))
    built: tuple[tuple[str, int], Stage] | None = None
    for kind in kinds:
        begin_ns = now_ns()
        conditions = setup.conditions[:: kind.every]
        plan = conditions_plan(conditions, setup.loras, num_stages=3)
        if built is None or built[0] != (kind.piece, kind.layers):
            built = None
            _release(setup.device)
            built = (kind.piece, kind.layers), _stage(setup, kind, plan)
        stage = replace(built[1], recompute=kind.recompute)
        setup.tell(
            f"{kind.piece} of {kind.layers} layers, recompute {kind.recompute}: {seconds_since(begin_ns)} s to build"
        )
        seconds = setup.seconds * (kind.layers / kind.every) / sum(one.layers / one.every for one in kinds)
        if kind.with_adapters:
            found, held = _measure_stage(setup, kind, stage, conditions, seconds=seconds)
            static.append(held)
        else:
            found = _measure_pieces(setup, kind, stage.model, plan, conditions, seconds=seconds)
        rows += found
        del stage
    return Measured(table=points_table(rows), static=tuple(static))


def _kinds(depths: Sequence[int]) -> Iterator[StageKind]:
    shallow = min(depths)
    # In an order in which a stage that is there already serves the next kind too.
    for recompute in RECOMPUTE_MODES:
        every = 1 if recompute == "none" else _SOME
        yield StageKind(piece="stage", layers=shallow, recompute=recompute, every=every)
    for layers in depths[1:]:
        yield StageKind(piece="stage", layers=layers, every=_DEEP)
    yield StageKind(piece="first", layers=shallow)
    yield StageKind(piece="last", layers=shallow)
    for layers in depths:
        yield StageKind(piece="frozen", layers=layers, with_adapters=False, with_pieces=layers == shallow)


def _stage(setup: Setup, kind: StageKind, plan: Plan) -> Stage:
    jobs = plan.jobs if kind.with_adapters else ()
    return make_stage_of(
        setup.folder,
        jobs,
        kind.layout(),
        weights=setup.weights,
        device=setup.device,
        recompute=kind.recompute,
    )


def _measure_stage(
    setup: Setup, kind: StageKind, stage: Stage, conditions: Sequence[Condition], *, seconds: float
) -> tuple[list[Mapping[str, object]], StaticBytes]:
    tokens = PoolTokens(stage.model.config.vocab_size)
    taken: dict[str, list[Float]] = {"forward": [], "backward": [], "step": []}
    held: list[Held] = []
    # The same orders for all workers.
    generator = np.random.default_rng(0)

    def one_round() -> None:
        order = generator.permutation(len(conditions))
        plan = conditions_plan([conditions[place] for place in order], setup.loras, num_stages=3)
        recorder = MemoryRecorder(stage=stage.layout.stage, device=setup.device)
        spans = run_round(stage, plan, tokens=tokens, recorder=recorder)
        ms = {word: np.array([ms for action, ms in spans if action.kind is wanted]) for word, wanted in _KINDS.items()}
        back = np.argsort(order)
        for word in ("forward", "backward"):
            taken[word].append(ms[word][: len(order)][back])
        # A step and the end of its batch, which the last backward has and its equal before it has not.
        ends = max(0.0, float(ms["backward"][-1] - ms["backward"][-2])) / len(setup.loras)
        taken["step"].append(np.median(ms["step"]) + ends)
        passes = zip(spans, recorder.held, strict=True) if recorder.held else ()
        found = [bytes_held for (action, _), bytes_held in passes if action.kind is not ActionKind.STEP]
        held[:] = [found[2 * place + number] for place in back for number in range(2)] if found else []

    repeat(one_round, setup.transport, num_workers=setup.num_workers, tell=setup.tell, seconds=seconds)
    # The first round compiled kernels.
    ms = {word: np.median(np.stack(found[1:]), axis=0) for word, found in taken.items()}
    plan = conditions_plan(conditions, setup.loras, num_stages=3)
    rows = _rows(kind, plan, conditions, forward_ms=ms["forward"], backward_ms=ms["backward"], held=held)
    if kind.piece == "stage" and kind.recompute == "none":
        step = {"piece": "step", "pass": "step", "recompute": "none", "layers": kind.layers}
        step |= {"condition": -1, "tokens": 1, "squares": 1, "targets": 1, "adapters": 1, "dropped": 0}
        rows.append(step | {"ms": float(ms["step"])})
    return rows, _static(setup, kind, stage)


def _rows(
    kind: StageKind,
    plan: Plan,
    conditions: Sequence[Condition],
    *,
    forward_ms: Float,
    backward_ms: Float,
    held: Sequence[Held] = (),
) -> list[Mapping[str, object]]:
    loads = Loads.of(plan.microbatches, jobs=plan.jobs)
    rows: list[Mapping[str, object]] = []
    for place, condition in enumerate(conditions):
        for number, (name, ms) in enumerate((("forward", forward_ms), ("backward", backward_ms))):
            row: dict[str, object] = {
                "piece": kind.piece,
                "pass": name,
                "recompute": kind.recompute,
                "layers": kind.layers,
                "condition": condition.number,
                "ms": float(ms[place]),
            }
            row |= {
                column: int(getattr(loads, column)[place])
                for column in ("tokens", "squares", "targets", "adapters", "dropped")
            }
            if held:
                # Forward and backward of each microbatch follow each other.
                own = held[2 * place + number]
                row |= {"kept_bytes": own.kept(), "passing_bytes": own.passing()}
            rows.append(row)
    return rows


def _measure_pieces(
    setup: Setup, kind: StageKind, model: StageModel, plan: Plan, conditions: Sequence[Condition], *, seconds: float
) -> list[Mapping[str, object]]:
    packer = Packer(plan.jobs, PoolTokens(model.config.vocab_size), device=setup.device)
    packed = [packer.pack(microbatch) for microbatch in plan.microbatches]
    eager = EagerLora.of(model, setup.loras)
    pieces: dict[str, Callable[[int], Call]] = {"frozen": lambda place: frozen_stage(model, packed[place])}
    if kind.with_pieces:
        pieces |= {
            "attention": lambda place: attention(model, packed[place]),
            "linears-frozen": lambda place: frozen_linears(model, packed[place]),
            "linears-eager": lambda place: eager_linears(model, packed[place], eager),
        }
    rows: list[Mapping[str, object]] = []
    for piece, call_of in pieces.items():
        taken: list[Float] = []

        def one_round(call_of: Callable[[int], Call] = call_of, taken: list[Float] = taken) -> None:
            recorder = MemoryRecorder(stage=1, device=setup.device)
            for place in range(len(conditions)):
                time_pass(recorder, call_of(place))
            taken.append(np.array(recorder.compute_ms()).reshape(-1, 2))

        repeat(
            one_round, setup.transport, num_workers=setup.num_workers, tell=setup.tell, seconds=seconds / len(pieces)
        )
        ms = np.median(np.stack(taken[1:]), axis=0)
        own = StageKind(piece=piece, layers=kind.layers if piece == "frozen" else 1)
        rows += _rows(own, plan, conditions, forward_ms=ms[:, 0], backward_ms=ms[:, 1])
    return rows


def _static(setup: Setup, kind: StageKind, stage: Stage) -> StaticBytes:
    gc.collect()
    return StaticBytes(
        kind=kind,
        weight_bytes=held_bytes(stage.model),
        adapter_parameters=sum(one.numel() for adapter in stage.adapters for one in adapter.parameters.values()),
        num_adapters=len(stage.adapters),
        held_bytes=torch.cuda.memory_allocated(setup.device) if setup.device.type == "cuda" else 0,
    )


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
