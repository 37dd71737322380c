"""What the measuring of a GPU leaves behind, and in which order it goes. No time is asserted."""

import gc
from pathlib import Path

import pytest
import torch

from loraplex.engine import measure_points as measuring
from loraplex.engine.graphs import LayerGraphs
from loraplex.engine.measure_points import measure_points
from loraplex.engine.model import StageModel
from loraplex.engine.profile_conditions import Condition, draw_conditions
from loraplex.engine.rendezvous import RendezvousTransport, Switchboard
from loraplex.engine.stage_kinds import Setup, StageKind, stage_kinds
from loraplex.engine.stage_rounds import usual
from loraplex.engine.tiny_model import write_tiny_model
from loraplex.engine.weight_source import FROM_FOLDER
from loraplex.planner.jobs import LoraSettings
from loraplex.traces.costs import RecomputeMode


def live_models(_: torch.device) -> int:
    gc.collect()
    return sum(issubclass(type(one), StageModel) for one in gc.get_objects())


def setup_of(folder: Path, loras: tuple[LoraSettings, ...], conditions: tuple[Condition, ...]) -> Setup:
    """A tiny model on a CPU, in no time."""
    return Setup(
        folder=write_tiny_model(folder, changes={"num_hidden_layers": 2, "hidden_size": 32}),
        weights=FROM_FOLDER,
        device=torch.device("cpu"),
        loras=loras,
        conditions=conditions,
        transport=RendezvousTransport(Switchboard(1, timeout_s=60), 0),
        num_workers=1,
        seconds=0.0,
        tell=lambda text: None,
    )


def test_what_a_stage_holds_is_what_it_gives_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Counted in models instead of bytes: a stage that somebody still held would give nothing back.
    monkeypatch.setattr(measuring, "_allocated", live_models)
    loras = (LoraSettings(r=4),)
    setup = setup_of(tmp_path, loras, draw_conditions(loras, capacity_tokens=48, count=3))
    static = measure_points(setup, depths=(1, 2)).static
    assert [(one.kind.piece, one.kind.layers, one.held_bytes) for one in static] == [
        ("stage", 1, 1),
        ("stage", 2, 1),
        ("first", 1, 1),
        ("last", 1, 1),
    ]


def test_what_is_replayed_is_launched_kernel_by_kernel_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[RecomputeMode] = []

    def graphs_on_a_cpu(model: StageModel, *, recompute: RecomputeMode) -> LayerGraphs:
        made.append(recompute)
        return LayerGraphs(model, model)

    # Filled up as for graphs, and launched all the same.
    monkeypatch.setattr(LayerGraphs, "_lane", lambda self, filled: None)
    monkeypatch.setattr(measuring, "layer_graphs", graphs_on_a_cpu)
    monkeypatch.setattr("loraplex.engine.stage.GRAPH_TOKENS", 100)
    loras = (LoraSettings(r=4),)
    setup = setup_of(tmp_path, loras, draw_conditions(loras, capacity_tokens=300, count=3))
    table = measure_points(setup, depths=(1, 2)).table
    # One of 64 tokens, and larger ones; each way of recomputing has graphs of its own.
    small = table[(table["tokens"] <= 100) & (table["piece"] != "step")]
    assert set(small["condition"]) == {0}
    assert not table.loc[table["tokens"] > 100, "replayed"].any()
    ways = small.groupby(["piece", "recompute", "layers"])["replayed"].apply(lambda held: sorted(set(held))).to_dict()
    assert ways == {
        ("stage", "none", 1): [False, True],
        ("stage", "none", 2): [False, True],
        ("stage", "selective", 1): [False, True],
        ("stage", "full", 1): [False, True],
        ("first", "none", 1): [True],
        ("last", "none", 1): [True],
        **{("frozen", "none", layers): [False] for layers in (1, 2)},
        **{(piece, "none", 1): [False] for piece in ("attention", "linears-frozen", "linears-eager")},
    }
    assert sorted(made) == ["full", "none", "none", "none", "none", "selective"]


def test_one_stage_serves_all_ways_of_recomputing() -> None:
    kinds = tuple(stage_kinds((2, 4)))
    assert [kind.module() for kind in kinds if kind.with_adapters] == [
        *[("stage", 2)] * 3,
        ("stage", 4),
        ("first", 2),
        ("last", 2),
    ]
    assert StageKind(piece="stage", layers=4, every=2).share() == 2.0


def test_a_point_is_a_median_with_its_quartiles() -> None:
    assert usual([9.0, 1.0, 2.0, 3.0, 2.5]) == {"ms": 2.5, "low_ms": 2.0, "high_ms": 3.0, "rounds": 5}
