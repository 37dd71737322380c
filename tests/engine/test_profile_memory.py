"""MemoryCosts from what an allocator held, on numbers made up from known costs."""

from dataclasses import replace

import pandas as pd
import pytest

from loraplex.engine.device_memory import DeviceBytes
from loraplex.engine.measure_points import Measured
from loraplex.engine.profile_memory import memory_costs
from loraplex.engine.stage_kinds import StageKind, StaticBytes
from loraplex.traces.costs import RecomputeMode
from loraplex.traces.graph_tokens import GRAPH_TOKENS
from loraplex.traces.profile_points import points_table

LAYER, SELECTIVE, HIDDEN, BESIDE = 1000.0, 700.0, 100.0, 20.0
WORKSPACE, PER_TARGET, CHUNK = 400.0, 30.0, 5e6


def rows() -> pd.DataFrame:
    kinds: list[tuple[str, int, RecomputeMode, float]] = [
        ("stage", 2, "none", LAYER),
        ("stage", 4, "none", LAYER),
        ("stage", 2, "selective", SELECTIVE),
        ("stage", 2, "full", HIDDEN),
        ("last", 2, "none", LAYER),
    ]
    found = []
    for condition, tokens in enumerate((300, 5000, 9000)):
        targets = tokens // (condition + 2)
        for piece, layers, recompute, each in kinds:
            # Under full recomputation the first layer's input is the stage's own, and was there before.
            own = HIDDEN if recompute == "full" else 0.0
            kept = tokens * (layers * each - own + BESIDE) + (PER_TARGET * targets if piece == "last" else 0.0)
            passing = CHUNK if piece == "last" else WORKSPACE / 2 * tokens
            row = {
                "piece": piece, "recompute": recompute, "layers": layers, "condition": condition, "tokens": tokens,
                "squares": tokens**2, "targets": targets, "adapters": 1, "dropped": 0, "ms": 1.0,
            }  # fmt: skip
            found.append(row | {"pass": "forward", "kept_bytes": kept, "passing_bytes": passing})
            found.append(row | {"pass": "backward", "kept_bytes": -kept, "passing_bytes": WORKSPACE * tokens})
    found.append(row | {"piece": "step", "pass": "step"})
    return points_table(found)


def held(piece: str, layers: int, *, weights: int) -> StaticBytes:
    # Two adapters of 500 parameters a layer, 20 bytes a parameter.
    return StaticBytes(
        kind=StageKind(piece=piece, layers=layers),
        weight_bytes=weights,
        adapter_parameters=2 * 500 * layers,
        num_adapters=2,
        held_bytes=weights + 20 * 2 * 500 * layers + 64,
    )


def test_every_part_comes_back() -> None:
    static = (
        held("stage", 2, weights=2_000_000),
        held("stage", 4, weights=4_000_000),
        held("first", 2, weights=2_700_000),
        held("last", 2, weights=2_800_000),
    )
    measured = Measured(table=rows(), static=static)
    memory = memory_costs(measured, device=DeviceBytes(total=80 * 2**30, context=600), boundary_bytes_per_token=HIDDEN)
    assert memory.layer_weight_bytes == 1_000_000
    assert (memory.embedding_weight_bytes, memory.head_weight_bytes) == (700_000, 800_000)
    assert (memory.adapter_bytes_per_layer, memory.adapter_parameters_per_layer) == (20 * 500, 500)
    assert memory.adapter_gradient_bytes_per_layer == 4 * 500
    modes: tuple[RecomputeMode, ...] = ("none", "selective", "full")
    assert [memory.kept_bytes_per_token_layer(mode) for mode in modes] == pytest.approx([LAYER, SELECTIVE, HIDDEN])
    assert memory.stage_bytes_per_token == pytest.approx(BESIDE + HIDDEN)
    assert memory.workspace_bytes_per_token == pytest.approx(WORKSPACE)
    assert [memory.logit_bytes_per_target, memory.head_workspace_bytes] == pytest.approx([PER_TARGET, CHUNK])
    assert (memory.overhead_bytes, memory.capacity_bytes) == (600, 80 * 2**30)
    assert memory.graph_tokens == 0
    replayed = replace(measured, table=measured.table.assign(replayed=measured.table["tokens"] == 300))
    with_graphs = memory_costs(
        replayed, device=DeviceBytes(total=80 * 2**30, context=600), boundary_bytes_per_token=HIDDEN
    )
    assert with_graphs == replace(memory, graph_tokens=GRAPH_TOKENS)


def test_a_model_of_one_depth_takes_all_of_it_for_the_layers() -> None:
    static = (
        held("stage", 2, weights=2_000_000),
        held("first", 2, weights=2_000_000),
        held("last", 2, weights=2_000_000),
    )
    table = rows()
    shallow = Measured(table=table[table["layers"] == 2], static=static)
    memory = memory_costs(shallow, device=DeviceBytes(total=1, context=0), boundary_bytes_per_token=HIDDEN)
    assert memory.layer_weight_bytes == 1_000_000
    # Whether it belongs to the layers or beside them cannot be told from one depth, but the sum is right.
    assert 2 * memory.activation_bytes_per_token_layer + memory.stage_bytes_per_token == pytest.approx(
        2 * LAYER + BESIDE + HIDDEN
    )
