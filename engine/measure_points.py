"""Measures a model on a GPU with the engine's own code, into the rows of traces/profile_points.py.

Stages of two depths tell a layer from what stands beside the layers; the other kinds of stage and the pieces of a layer
are measured on a third of the microbatches.
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..planner.jobs import LoraSettings
from ..planner.loads import Loads
from ..planner.plan import Plan
from ..planner.program import ActionKind
from ..traces.costs import RecomputeMode
from ..traces.profile_points import points_table
from .batch import Packer
from .measure import Float, agreed_rounds, run_round
from .measure_pieces import Call, EagerLora, attention, eager_linears, frozen_linears, frozen_stage, time_pass
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
_MOST_ROUNDS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class StageKind:
    """One kind of stage to measure."""

    piece: str
    layers: int
    recompute: RecomputeMode = "none"
    with_adapters: bool = True
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
    """About what all of it may take once kernels are compiled."""


def measure_points(setup: Setup, *, depths: Sequence[int]) -> Measured:
    """Measure stages of these depths (layers); all workers call it together, and keep each other busy as in a run."""
    some = setup.conditions[::_SOME]
    rows: list[Mapping[str, object]] = []
    static = []
    kinds = tuple(_kinds(depths))
    for kind in kinds:
        conditions = setup.conditions if kind.piece == "stage" and kind.recompute == "none" else some
        plan = conditions_plan(conditions, setup.loras, num_stages=3)
        stage = _stage(setup, kind, plan)
        seconds = setup.seconds * len(conditions) * kind.layers / _work(kinds, len(setup.conditions), len(some))
        if kind.with_adapters:
            found, held = _measure_stage(setup, kind, stage, plan, conditions, seconds=seconds)
            static.append(held)
        else:
            found = _measure_pieces(setup, kind, stage.model, plan, conditions, seconds=seconds)
        rows += found
        del stage
        _release(setup.device)
    return Measured(table=points_table(rows), static=tuple(static))


def _kinds(depths: Sequence[int]) -> Iterator[StageKind]:
    shallow = min(depths)
    for layers in depths:
        yield StageKind(piece="stage", layers=layers)
    yield StageKind(piece="stage", layers=shallow, recompute="selective")
    yield StageKind(piece="stage", layers=shallow, recompute="full")
    yield StageKind(piece="first", layers=shallow)
    yield StageKind(piece="last", layers=shallow)
    for layers in depths:
        yield StageKind(piece="frozen", layers=layers, with_adapters=False, with_pieces=layers == shallow)


def _work(kinds: Sequence[StageKind], num_all: int, num_some: int) -> float:
    return sum(
        kind.layers * (num_all if kind.piece == "stage" and kind.recompute == "none" else num_some) for kind in kinds
    )


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
    setup: Setup, kind: StageKind, stage: Stage, plan: Plan, conditions: Sequence[Condition], *, seconds: float
) -> tuple[list[Mapping[str, object]], StaticBytes]:
    tokens = PoolTokens(stage.model.config.vocab_size)
    taken: dict[ActionKind, list[Float]] = {ActionKind.FORWARD: [], ActionKind.BACKWARD: [], ActionKind.STEP: []}
    held: list[Held] = []

    def one_round() -> None:
        recorder = MemoryRecorder(stage=stage.layout.stage, device=setup.device)
        spans = run_round(stage, plan, tokens=tokens, recorder=recorder)
        for action_kind, found in taken.items():
            found.append(np.array([ms for action, ms in spans if action.kind is action_kind]))
        passes = zip(spans, recorder.held, strict=True) if recorder.held else ()
        held[:] = [bytes_held for (action, _), bytes_held in passes if action.kind is not ActionKind.STEP]

    _repeat(setup, one_round, seconds=seconds)
    # The first round compiled kernels.
    ms = {action_kind: np.median(np.stack(found[1:]), axis=0) for action_kind, found in taken.items()}
    rows = _rows(
        kind, plan, conditions, forward_ms=ms[ActionKind.FORWARD], backward_ms=ms[ActionKind.BACKWARD], held=held
    )
    if kind.piece == "stage" and kind.recompute == "none":
        step = {"piece": "step", "pass": "step", "recompute": "none", "layers": kind.layers}
        step |= {"condition": -1, "tokens": 1, "squares": 1, "targets": 1, "adapters": 1, "dropped": 0}
        rows.append(step | {"ms": float(np.median(ms[ActionKind.STEP]))})
    return rows, _static(setup, kind, stage)


def _repeat(setup: Setup, one_round: Callable[[], None], *, seconds: float) -> None:
    # Once to compile, once to see what it takes, then as often as the time allows.
    setup.transport.barrier()
    one_round()
    setup.transport.barrier()
    begin_ns = now_ns()
    one_round()
    took_s = max((now_ns() - begin_ns) / 1e9, 1e-6)
    afforded = min(_MOST_ROUNDS, max(1, int(seconds / took_s)))
    for _ in range(agreed_rounds(afforded, setup.transport, setup.num_workers) - 1):
        setup.transport.barrier()
        one_round()


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

        _repeat(setup, one_round, seconds=seconds / len(pieces))
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
