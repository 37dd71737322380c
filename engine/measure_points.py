"""Measures a model on a GPU with the engine's own code, into the rows of traces/profile_points.py.

Stages of two depths tell a layer from what stands beside the layers; the other kinds of stage and the pieces of a layer
are measured on some of the microbatches. Rounds of all kinds of stage take turns, so that a host that changes its speed
does so for all of them. Behind the rounds the deepest stage works for seconds without a rest (steady_stretch.py).
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from ..planner.plan import Plan
from ..traces.counted import counted
from ..traces.graph_tokens import GRAPH_TOKENS
from ..traces.profile_points import points_table
from .graphs import layer_graphs
from .measure_pieces import Call, EagerLora, attention, eager_linears, frozen_linears, frozen_stage, time_pass
from .measure_rounds import repeat, seconds_since
from .model import StageModel
from .nf4_linear import held_bytes
from .packer import Packer
from .pool_tokens import PoolTokens
from .profile_conditions import AGAIN, Condition, conditions_plan, every_so_many
from .recorder import Recorder, now_ns
from .stage import Stage, make_stage_of
from .stage_kinds import Setup, StageKind, StaticBytes, stage_kinds
from .stage_rounds import Passes, Row, StageRounds
from .steady_stretch import steady_rows

_LARGE_SHARE = 2 / 3
"""Of the time, for large microbatches."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """All that was measured of a model."""

    table: pd.DataFrame
    static: tuple[StaticBytes, ...]

    def graph_tokens(self) -> int:
        """Up to so many tokens microbatches were replayed as CUDA graphs; 0 where none was."""
        return GRAPH_TOKENS if self.table["replayed"].any() else 0


def measure_points(setup: Setup, *, depths: Sequence[int]) -> Measured:
    """Measure stages of these depths (layers); all workers call it together, and keep each other busy as in a run."""
    kinds = tuple(stage_kinds(depths))
    trained = [kind for kind in kinds if kind.with_adapters]
    whole = sum(kind.share() for kind in kinds)
    rows, static = _measure_stages(setup, trained, seconds=setup.seconds * sum(map(StageKind.share, trained)) / whole)
    _release(setup.device)
    for kind in kinds:
        if not kind.with_adapters:
            stage = _stage(setup, kind)
            rows += _measure_pieces(setup, kind, stage.model, seconds=setup.seconds * kind.share() / whole)
            del stage
            _release(setup.device)
    return Measured(table=points_table(rows), static=static)


def _stage(setup: Setup, kind: StageKind) -> Stage:
    begin_ns = now_ns()
    plan = conditions_plan(setup.conditions[:: kind.every], setup.loras, num_stages=3)
    stage = make_stage_of(
        setup.folder,
        plan.jobs if kind.with_adapters else (),
        kind.layout(),
        weights=setup.weights,
        device=setup.device,
    )
    # Graphs come with what is measured (`_as_trained`): what they hold would be counted as the stage's.
    stage = replace(stage, graphs=None)
    setup.tell(f"{kind.piece} of {counted(kind.layers, 'layer')}: {seconds_since(begin_ns)} s to build")
    return stage


def _measure_stages(
    setup: Setup, kinds: Sequence[StageKind], *, seconds: float
) -> tuple[list[Row], tuple[StaticBytes, ...]]:
    stages = {kind.module(): _stage(setup, kind) for kind in {kind.module(): kind for kind in kinds}.values()}
    rows = _measure_rounds(setup, [(kind, _as_trained(kind, stages[kind.module()])) for kind in kinds], seconds=seconds)
    plain = [kind for kind in kinds if kind.piece == "stage" and kind.recompute == "none"]
    deepest = max(plain, key=lambda kind: kind.layers)
    rows += steady_rows(setup, deepest, stages[deepest.module()], points_table(rows))
    static = []
    for kind in kinds:
        if kind.recompute == "none":
            stage = stages.pop(kind.module())
            held, before = _static(kind, stage), _allocated(setup.device)
            # What it gives back is what it held; others are still there, and what libraries keep for themselves.
            del stage
            static.append(replace(held, held_bytes=before - _allocated(setup.device)))
    return rows, tuple(static)


def _as_trained(kind: StageKind, stage: Stage) -> Stage:
    # Graphs of its own for each way of recomputing, which they contain.
    return replace(stage, recompute=kind.recompute, graphs=layer_graphs(stage.model, recompute=kind.recompute))


def _measure_rounds(setup: Setup, stages: Sequence[tuple[StageKind, Stage]], *, seconds: float) -> list[Row]:
    rows: list[Row] = []
    for large in (False, True):
        series = [
            StageRounds(setup, kind, ran, conditions, again=1 if large else AGAIN)
            for kind, stage in stages
            for ran, conditions in _ways_to_launch(
                kind, stage, every_so_many(setup.conditions, every=kind.every, large=large)
            )
            if conditions
        ]
        repeat(
            [one.run for one in series],
            setup.transport,
            num_workers=setup.num_workers,
            tell=setup.tell,
            seconds=seconds * (_LARGE_SHARE if large else 1 - _LARGE_SHARE),
        )
        # A step's work is the GPU's; behind small microbatches it would wait for the host as they do.
        rows += [row for one in series for row in one.rows(with_step=large)]
    return rows


def _ways_to_launch(
    kind: StageKind, stage: Stage, conditions: Sequence[Condition]
) -> Iterator[tuple[Stage, Sequence[Condition]]]:
    yield stage, conditions
    if kind.piece == "stage":
        # What is replayed is launched kernel by kernel too, as evaluations are: what is not replayed hardly waits for
        # its launches, and would not tell what they take.
        yield replace(stage, graphs=None), [one for one in conditions if stage.replays(one.num_tokens())]


def _measure_pieces(setup: Setup, kind: StageKind, model: StageModel, *, seconds: float) -> list[Row]:
    conditions = setup.conditions[:: kind.every]
    plan = conditions_plan(conditions, setup.loras, num_stages=3)
    rows: list[Row] = []
    pieces = _pieces(setup, kind, model, plan)
    # The small ones first, as in a round of stages.
    order = np.argsort([condition.num_tokens() for condition in conditions], kind="stable").tolist()
    for piece, call_of in pieces.items():
        taken = [Passes(len(conditions))]

        def one_round(call_of: Callable[[int], Call] = call_of, taken: list[Passes] = taken) -> None:
            recorder = Recorder(stage=1, device=setup.device)
            for place in order:
                time_pass(recorder, call_of(place))
            ms = recorder.compute_ms()
            for number, place in enumerate(order):
                taken[-1].add("forward", place, ms[2 * number])
                taken[-1].add("backward", place, ms[2 * number + 1])
            if len(taken) == 1:
                # The first round compiles.
                taken.append(Passes(len(conditions)))

        repeat(
            [one_round], setup.transport, num_workers=setup.num_workers, tell=setup.tell, seconds=seconds / len(pieces)
        )
        own = StageKind(piece=piece, layers=kind.layers if piece == "frozen" else 1)
        rows += taken[-1].rows(own, conditions, plan)
    return rows


def _pieces(setup: Setup, kind: StageKind, model: StageModel, plan: Plan) -> dict[str, Callable[[int], Call]]:
    packer = Packer(plan.jobs, PoolTokens(model.config.vocab_size), device=setup.device)
    packed = [packer.pack(microbatch) for microbatch in plan.microbatches]
    pieces: dict[str, Callable[[int], Call]] = {"frozen": lambda place: frozen_stage(model, packed[place])}
    if kind.with_pieces:
        eager = EagerLora.of(model, setup.loras)
        pieces |= {
            "attention": lambda place: attention(model, packed[place]),
            "linears-frozen": lambda place: frozen_linears(model, packed[place]),
            "linears-eager": lambda place: eager_linears(model, packed[place], eager),
        }
    return pieces


def _static(kind: StageKind, stage: Stage) -> StaticBytes:
    return StaticBytes(
        kind=kind,
        weight_bytes=held_bytes(stage.model),
        adapter_parameters=sum(one.numel() for adapter in stage.adapters for one in adapter.parameters.values()),
        num_adapters=len(stage.adapters),
        held_bytes=0,
    )


def _allocated(device: torch.device) -> int:
    gc.collect()
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
