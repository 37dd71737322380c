"""The benchmark's grid, its ragged segments, its report, and what its commands say without a GPU."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loraplex.kernels import bench, commands
from loraplex.kernels.bench import gate, read_grid
from loraplex.kernels.bench_peers import (
    absent_peers,
    can_run_unsloth,
    eager,
    frozen,
    lists,
    make_data,
    ours,
    segment_rows,
)
from loraplex.kernels.bench_report import Record, geomean, missed, summary, write_results
from loraplex.kernels.multi_lora import multi_lora_linears
from loraplex.traces.errors import InputError


def test_the_grid_holds_every_value_of_every_factor() -> None:
    rows = read_grid()
    assert {row.T for row in rows} == {2048, 4096, 8192, 16384}
    assert {row.r for row in rows} == {8, 16, 64}
    assert {row.num_adapters for row in rows} == {1, 4}
    assert {row.dropout for row in rows} == {0.0, 0.1}
    assert {row.direction for row in rows} == {"forward", "both"}
    assert {row.cuda_graph for row in rows} == {True, False}
    assert {row.linear for row in rows} == {
        f"{model} {linear}" for model in ("8b", "32b", "70b") for linear in ("q/k/v", "o", "gate/up", "down", "k", "v")
    }
    goal = [row for row in rows if row.goal]
    assert len(goal) == 3 * 4 * 3 * 2 * 2
    assert all(row.r == 16 and row.T >= 4096 and row.cuda_graph and row.direction == "both" for row in goal)
    assert len({(row.linear, row.T, row.num_adapters, row.dropout) for row in goal}) == len(goal)


@pytest.mark.parametrize("num_rows", [2048, 4096, 8192, 16384])
def test_ragged_segments_cover_the_rows_with_borders_off_the_tiles(num_rows: int) -> None:
    segments = segment_rows(num_rows, 4)
    assert [first for first, _ in segments] == [0, *(first + rows for first, rows in segments[:-1])]
    assert sum(segments[-1]) == num_rows
    assert all(first % 128 for first, _ in segments[1:])
    assert segment_rows(num_rows, 1) == [(0, num_rows)]


def test_all_ways_compute_the_same_linear() -> None:
    row = next(row for row in read_grid() if row.num_adapters == 4 and row.dropout == 0.0)
    row = type(row)(**{name: getattr(row, name) for name in row.__slots__} | {"T": 1024, "K": 64, "N": (48, 32)})
    data = make_data(row, torch.device("cpu"))
    x = data.x[0].detach()
    for way in (ours, lists):
        torch.testing.assert_close(way(data, row)(x), eager(data, row)(x), rtol=0.05, atol=0.05)
    assert frozen(data, row)(x).shape == (1024, 80)


def test_a_peer_that_is_not_measured_is_named_with_its_reason() -> None:
    row = next(row for row in read_grid() if row.num_adapters == 1 and row.dropout == 0.0 and len(row.N) == 1)
    assert can_run_unsloth(row)
    row = type(row)(**{name: getattr(row, name) for name in row.__slots__} | {"T": 4, "K": 8, "N": (6,)})
    absent = absent_peers(make_data(row, torch.device("cpu")), row)
    assert "no kernel for a LoRA linear" in absent["liger-kernel"]
    # not installed beside these tests
    assert absent["unsloth"].startswith("does not import here: ModuleNotFoundError: No module named 'unsloth'")


def test_the_gate_passes_the_reference_and_stops_at_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    # on the CPU both ways run the reference
    gate(torch.device("cpu"))
    monkeypatch.setattr(
        bench, "multi_lora_linears", lambda *arguments, **more: 1.1 * multi_lora_linears(*arguments, **more)
    )
    with pytest.raises(RuntimeError, match=r"tensor 0 of 1 adapters at dropout 0\.0 is off by 1\.0e-01"):
        gate(torch.device("cpu"))


def record(ours_ms: float, *, goal: bool = True, **more: int) -> Record:
    return {
        "linear": "8b o", "T": 4096, "K": 4096, "N": 4096, "num_targets": 1, "r": 16, "num_adapters": 1, "dropout": 0.0,
        "direction": "both", "cuda_graph": True, "goal": goal, "ours_ms": ours_ms, "frozen_ms": 1.0, "eager_ms": 1.2,
        "compile_ms": None, **more,
    }  # fmt: skip


def test_the_report_names_what_misses_and_what_is_slower_than_eager(tmp_path: Path) -> None:
    records = [record(1.0), record(1.21, T=8192), record(1.3, goal=False, cuda_graph=False, T=2048)]
    found = summary(records)
    assert found["goal rows, 1 adapter(s), p = 0.0"] == {
        "ours": pytest.approx(1.1), "eager": pytest.approx(1.2), "at_most": 1.05, "rows": 2,
    }  # fmt: skip
    assert found["rows slower than eager"] == [
        "8b o T=8192 r=16 adapters=1 p=0.0 both graph", "8b o T=2048 r=16 adapters=1 p=0.0 both no graph",
    ]  # fmt: skip
    assert missed(records) == [records[1]]
    assert geomean([2.0, 0.5]) == pytest.approx(1.0)
    paths = write_results(tmp_path, "kernels-gpu-2026", {"gpu": "GPU", "records": records})
    assert [path.name for path in paths] == [f"kernels-gpu-2026.{suffix}" for suffix in ("json", "csv", "png")]
    assert json.loads(paths[0].read_text(encoding="utf-8"))["records"] == records
    assert len(paths[1].read_text(encoding="utf-8").splitlines()) == 4
    assert paths[2].stat().st_size > 1000


@pytest.mark.parametrize("command", [commands.bench_kernels, commands.tune])
def test_without_a_gpu_a_command_refuses_and_says_so(
    command: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="needs a CUDA GPU, and torch sees none: run it on a machine with one"):
        command()
