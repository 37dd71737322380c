"""The benchmark's grid, its ragged segments, its report, and what its commands say without a GPU."""

import dataclasses
import gc
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from loraplex.kernels import bench, bench_run, commands, reference, tune, tuning
from loraplex.kernels.bench import gate, read_grid
from loraplex.kernels.bench_peers import (
    Data,
    Row,
    absent_peers,
    can_run_unsloth,
    eager,
    frozen,
    lists,
    make_data,
    ours,
    segment_rows,
)
from loraplex.kernels.bench_report import Record, by_pass, geomean, missed, summary, tried, write_results
from loraplex.kernels.layout import DEFAULT_CONFIG
from loraplex.kernels.multi_lora import multi_lora_linears
from loraplex.kernels.tuning import Tuned
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
    assert len({row.name() for row in rows}) == len(rows)


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


def record(ours_ms: float, *, goal: bool = True, **more: Any) -> Record:
    return {
        "linear": "8b o", "T": 4096, "K": 4096, "N": 4096, "num_targets": 1, "r": 16, "num_adapters": 1, "dropout": 0.0,
        "direction": "both", "cuda_graph": True, "goal": goal, "ours_ms": ours_ms, "frozen_ms": 1.0, "eager_ms": 1.2,
        "compile_ms": None, **more,
    }  # fmt: skip


def test_the_report_names_what_misses_and_what_is_slower_or_larger_than_eager(tmp_path: Path) -> None:
    small: dict[str, Any] = {"ours_peak_bytes": 5, "eager_peak_bytes": 8, "ours_saved_bytes": 1, "eager_saved_bytes": 4}
    records = [
        record(1.0, **small), record(1.21, T=8192, **{**small, "ours_peak_bytes": 9}),
        record(1.3, goal=False, cuda_graph=False, T=2048),
    ]  # fmt: skip
    found = summary(records)
    assert found["goal rows, 1 adapter(s), p = 0.0"] == {
        "ours": pytest.approx(1.1), "eager": pytest.approx(1.2), "at_most": 1.05, "rows": 2,
    }  # fmt: skip
    assert found["slower than eager"] == {
        "rows": 3, "above": 2,
        "which": [
            "8b o T=8192 r=16 adapters=1 p=0.0 both graph", "8b o T=2048 r=16 adapters=1 p=0.0 both no graph",
        ],
    }  # fmt: skip
    assert found["more peak memory than eager"] == {
        "rows": 2, "above": 1, "which": ["8b o T=8192 r=16 adapters=1 p=0.0 both graph"],
    }  # fmt: skip
    assert found["bytes saved for backward, ours / eager"] == pytest.approx(0.25)
    assert geomean([2.0, 0.5]) == pytest.approx(1.0)
    paths = write_results(tmp_path, "kernels-gpu-2026", {"gpu": "GPU", "records": records})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    assert [path.name for path in paths] == [f"kernels-gpu-2026.{suffix}" for suffix in ("json", "csv", "png")]
    assert json.loads(paths[0].read_text(encoding="utf-8"))["records"] == records
    assert len(paths[1].read_text(encoding="utf-8").splitlines()) == 4
    assert paths[2].stat().st_size > 1000


@pytest.mark.parametrize(
    ("ours_ms", "more", "missed_it"),
    [
        (1.04, {}, False), (1.06, {}, True), (1.06, {"goal": False}, False), (1.11, {"goal": False}, True),
        (1.11, {"goal": False, "cuda_graph": False, "T": 8192}, True),
        (9.0, {"goal": False, "cuda_graph": False, "T": 4096}, False),
        (9.0, {"goal": False, "direction": "forward"}, False),
    ],
)  # fmt: skip
def test_a_row_is_held_to_what_its_case_is_held_to(ours_ms: float, more: dict[str, Any], missed_it: bool) -> None:
    assert missed(record(ours_ms) | more) is missed_it


def test_passes_of_one_kernel_are_told_apart_by_their_order() -> None:
    # two calls: a kernel twice in each, one once, and one of which the profiler lost an event
    events = [("s", 0.0, 1.0), ("s", 5.0, 3.0), ("g", 2.0, 2.0), ("lost", 3.0, 6.0), ("lost", 4.0, 6.0)]
    events += [("s", 15.0, 5.0), ("s", 10.0, 1.0), ("g", 12.0, 4.0), ("lost", 13.0, 6.0)]
    assert by_pass(events, num_calls=2) == {"s 1/2": 1.0, "s 2/2": 4.0, "g": 3.0, "lost": 9.0}


def test_what_was_tried_comes_from_the_log_alone() -> None:
    log = (
        "# Log\n## Kernels\n\n- no\n### What did not work\n- one\n  and a half\n- two\n### Else\n- no\n## Next\n- no\n"
    )
    assert tried(log) == ["one and a half", "two"]
    entries = tried(bench_run.LOG_FILE.read_text(encoding="utf-8"))
    assert len(entries) > 15
    assert entries[0].startswith("One pass over dy for dS and dB at once: 24 us for 64 MiB")


ROWS = [row for row in read_grid() if row.linear == "8b o" and row.T == 8192 and row.dropout == 0.0][:3]


def measured(row: Row, *, ours_ms: float = 1.2) -> Record:
    return record(ours_ms, goal=row.goal) | {
        name: getattr(row, name) for name in ("linear", "T", "r", "num_adapters", "dropout", "direction", "cuda_graph")
    }


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is asked for nothing but to have finished."""
    monkeypatch.setattr(gc, "freeze", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")


@pytest.mark.usefixtures("gpu")
def test_a_row_that_fails_is_kept_as_failed_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(row: Row, device: torch.device, *, peers: list[str]) -> Record:
        if row == ROWS[0]:
            raise RuntimeError("out of memory")
        return measured(row)

    monkeypatch.setattr(bench, "measure", measure)
    results, said, kept = bench_run.Results(), list[str](), list[int]()
    more: dict[str, Any] = {
        "peers": [], "report": said.append, "keep": lambda: kept.append(len(results.records)),
    }  # fmt: skip
    bench_run.measure_rows(ROWS, results, out_of_time=lambda: len(kept) == 2, **more)
    assert results.failed == {ROWS[0].name(): "RuntimeError: out of memory"}
    assert results.missing(ROWS) == [ROWS[0].name(), ROWS[2].name()]
    assert kept == [0, 1]
    assert said == [
        f"1/3 {ROWS[0].name()}: failed, RuntimeError: out of memory",
        f"2/3 {ROWS[1].name()}: ours/frozen 1.200, eager/frozen 1.200",
    ]
    monkeypatch.setattr(bench, "measure", lambda row, device, *, peers: measured(row))
    bench_run.measure_rows(ROWS, results, out_of_time=lambda: False, **more)
    assert results.missing(ROWS) == []
    assert results.failed == {}
    assert kept == [0, 1, 2, 3]


@pytest.mark.usefixtures("gpu")
def test_each_shape_that_misses_is_profiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ROWS[0]
    ungraphed = dataclasses.replace(row, cuda_graph=False, goal=False)
    met = dataclasses.replace(row, T=4096)
    results = bench_run.Results(records={each.name(): measured(each) for each in (row, ungraphed)})
    results.records[met.name()] = measured(met, ours_ms=1.01)
    asked: list[Row] = []

    def profile(row: Row, device: torch.device) -> dict[str, dict[str, float]]:
        asked.append(row)
        return {"ours": {"gemm_kernel 1/2": 0.4}, "frozen": {"product": 0.3}}

    monkeypatch.setattr(bench, "profile_passes", profile)
    more: dict[str, Any] = {"report": lambda line: None, "keep": lambda: None}
    bench_run.profile_missed([met, row, ungraphed], results, out_of_time=lambda: True, **more)
    assert asked == []
    bench_run.profile_missed([met, row, ungraphed], results, out_of_time=lambda: False, **more)
    assert asked == [row]
    assert list(results.profiles) == ["8b o T=8192 r=16 adapters=1 p=0.0"]


@pytest.fixture
def short_grid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A grid file of three rows, and kernels that are right and take no time."""
    monkeypatch.setattr(bench, "gate", lambda device: None)
    monkeypatch.setattr(bench, "measure", lambda row, device, *, peers: measured(row))
    monkeypatch.setattr(bench, "profile_passes", lambda row, device: {"ours": {}, "frozen": {}})
    monkeypatch.setattr(bench_run, "absent_peers", lambda rows, device: {"unsloth": "not here"})
    path = tmp_path / "grid.json"
    path.write_text(json.dumps([dataclasses.asdict(row) for row in ROWS]), encoding="utf-8")
    return path


@pytest.mark.usefixtures("gpu")
def test_an_unfinished_run_ends_with_1_and_is_resumed(
    short_grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = itertools.count()
    with monkeypatch.context() as short_of_time:
        short_of_time.setattr(time, "monotonic", lambda: float(next(clock)))
        with pytest.raises(typer.Exit) as ended:
            commands.bench_kernels(output=tmp_path, grid=short_grid, seconds=2.0)
    assert ended.value.exit_code == 1
    (path,) = tmp_path.glob("kernels-some-gpu-*.json")
    begun = json.loads(path.read_text(encoding="utf-8"))
    assert begun["rows"] == {"in_grid": 3, "measured": 1, "missing": [row.name() for row in ROWS[1:]]}
    assert f"2 of 3 rows and 1 profiles are missing: go on with --resume {path}" in capsys.readouterr().err
    with pytest.raises(
        InputError,
        match=rf"holds 1 rows of a run of today that lacks 2 rows and 1 profiles: go on with --resume {path}",
    ):
        commands.bench_kernels(output=tmp_path, grid=short_grid)
    assert json.loads(path.read_text(encoding="utf-8")) == begun

    commands.bench_kernels(output=tmp_path, grid=short_grid, resume=path, json=True)
    out, err = capsys.readouterr()
    done = json.loads(out)
    assert done["rows"] == {"in_grid": 3, "measured": 3, "missing": []}
    assert done["records"][0] == begun["records"][0]
    assert done["missed_without_profile"] == []
    assert set(done["profile_ms"]) == {row.shape_name() for row in ROWS}
    assert done == json.loads(path.read_text(encoding="utf-8"))
    assert f"wrote {path}" in err
    # A whole one may be made anew.
    commands.bench_kernels(output=tmp_path, grid=short_grid)
    capsys.readouterr()

    path.write_text(json.dumps(done | {"gpu": "Another"}), encoding="utf-8")
    with pytest.raises(InputError, match="has gpu Another, here it is Some GPU"):
        commands.bench_kernels(output=tmp_path, grid=short_grid, resume=path)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be resumed"):
        commands.bench_kernels(output=tmp_path, grid=short_grid, resume=path)


@pytest.mark.usefixtures("gpu")
def test_a_row_that_always_fails_keeps_no_other_from_its_profile(
    short_grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(row: Row, device: torch.device, *, peers: list[str]) -> Record:
        if row == ROWS[0]:
            raise RuntimeError("out of memory")
        return measured(row)

    monkeypatch.setattr(bench, "measure", measure)
    with pytest.raises(typer.Exit) as ended:
        commands.bench_kernels(output=tmp_path, grid=short_grid, json=True)
    assert ended.value.exit_code == 1
    done = json.loads(capsys.readouterr().out)
    assert done["rows"]["missing"] == [ROWS[0].name()]
    assert set(done["profile_ms"]) == {row.shape_name() for row in ROWS[1:]}


@pytest.mark.usefixtures("gpu")
def test_tune_prints_one_object_and_its_progress_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Tuned(dtype="torch.bfloat16", max_rows=2048, max_lora_rank=16, dropout=False, config=DEFAULT_CONFIG)

    def tune_gpu(*, report: Callable[[str], None]) -> list[Tuned]:
        report("2% faster")
        return [found]

    monkeypatch.setattr(tune, "tune_gpu", tune_gpu)
    path = tmp_path / "gpu.json"
    commands.tune(output=path, json=True)
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads(path.read_text(encoding="utf-8")) | {"file": str(path)}
    assert err == f"2% faster\nwrote {path}\n"
    assert tuning.read_tuned(path, same_versions=True) == (found,)


def in_float32(data: Data) -> Data:
    """The interpreter's products of bfloat16 are wrong."""

    def cast(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.detach().float() for tensor in tensors)

    return dataclasses.replace(
        data, x=cast(data.x), dy=cast(data.dy), weight=data.weight.float(), lora_a=tuple(map(cast, data.lora_a)),
        lora_b=tuple(map(cast, data.lora_b)),
    )  # fmt: skip


def test_what_is_tuned_is_a_chain_of_linears_and_its_gradient() -> None:
    if torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")
    links = [in_float32(data) for data in tune._links(48, 32, 8, 0.1, torch.device("cpu"))]
    got = tune.chain(links, DEFAULT_CONFIG, turn=1)
    x = leaf = links[0].x[1].requires_grad_()
    for link in links:
        x = reference.multi_lora_linears(
            x, [link.weight], [None], link.lora_a, link.lora_b, routing=link.routing, targets=[0]
        )
    (wanted,) = torch.autograd.grad(x, leaf, links[-1].dy[1])
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("command", [commands.bench_kernels, commands.tune])
def test_without_a_gpu_a_command_refuses_and_says_so(
    command: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="needs a CUDA GPU, and torch sees none: run it on a machine with one"):
        command()
