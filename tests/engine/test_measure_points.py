"""What the measuring of a GPU leaves behind, and in which order it goes. No time is asserted."""

import gc
from pathlib import Path

import pytest
import torch

from loraplex.engine import measure_points as measuring
from loraplex.engine.measure_points import measure_points
from loraplex.engine.model import StageModel
from loraplex.engine.profile_conditions import draw_conditions
from loraplex.engine.rendezvous import RendezvousTransport, Switchboard
from loraplex.engine.stage_kinds import Setup, StageKind, stage_kinds
from loraplex.engine.stage_rounds import usual
from loraplex.engine.tiny_model import write_tiny_model
from loraplex.engine.weight_source import FROM_FOLDER
from loraplex.planner.jobs import LoraSettings


def live_models(_: torch.device) -> int:
    gc.collect()
    return sum(issubclass(type(one), StageModel) for one in gc.get_objects())


def test_what_a_stage_holds_is_what_it_gives_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Counted in models instead of bytes: a stage that somebody still held would give nothing back.
    monkeypatch.setattr(measuring, "_allocated", live_models)
    loras = (LoraSettings(r=4),)
    setup = Setup(
        folder=write_tiny_model(tmp_path, changes={"num_hidden_layers": 2, "hidden_size": 32}),
        weights=FROM_FOLDER,
        device=torch.device("cpu"),
        loras=loras,
        conditions=draw_conditions(loras, capacity_tokens=48, count=3),
        transport=RendezvousTransport(Switchboard(1, timeout_s=60), 0),
        num_workers=1,
        seconds=0.0,
        tell=lambda text: None,
    )
    static = measure_points(setup, depths=(1, 2)).static
    assert [(one.kind.piece, one.kind.layers, one.held_bytes) for one in static] == [
        ("stage", 1, 1),
        ("stage", 2, 1),
        ("first", 1, 1),
        ("last", 1, 1),
    ]


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
