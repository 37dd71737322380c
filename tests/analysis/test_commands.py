"""The commands `compare` and `report` as a user types them."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from loraplex.analysis import commands
from loraplex.simulator.sharing import SharingPoint, SystemPoint
from loraplex.simulator.simulate import Hardware
from loraplex.traces.errors import TraceError

from .conftest import MakeTimeline

app = typer.Typer()
app.command()(commands.compare)
app.command()(commands.report)


@pytest.fixture
def folder(make_1f1b: MakeTimeline, tmp_path: Path) -> Path:
    make_1f1b(num_stages=2, num_microbatches=3).save(tmp_path / "timeline-simulated.json")
    make_1f1b(num_stages=2, num_microbatches=3, backward_ms=3.0, source="measured").save(
        tmp_path / "timeline-measured.json"
    )
    return tmp_path


def test_compare_prints_one_json_object_and_nothing_else(folder: Path) -> None:
    done = CliRunner().invoke(app, ["compare", str(folder), "--json"], catch_exceptions=False)
    content = json.loads(done.stdout)
    assert (content["makespan_error"], content["same_order"]) == (12 / 16 - 1, True)


def test_compare_takes_two_files_as_well_as_a_folder(folder: Path) -> None:
    files = [str(folder / f"timeline-{source}.json") for source in ("simulated", "measured")]
    by_files = CliRunner().invoke(app, ["compare", *files], catch_exceptions=False)
    by_folder = CliRunner().invoke(app, ["compare", str(folder)], catch_exceptions=False)
    assert by_files.stdout == by_folder.stdout
    assert "-25.0 %" in by_files.stdout


def test_report_says_where_it_wrote(folder: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(folder)], catch_exceptions=False)
    assert f"wrote {folder / 'report.html'}" in done.stdout
    done = CliRunner().invoke(app, ["report", str(folder), "--json", "-o", str(folder / "x.html")])
    assert json.loads(done.stdout)["report"] == str(folder / "x.html")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    for command in ("compare", "report"):
        with pytest.raises(TraceError, match="timeline-simulated"):
            CliRunner().invoke(app, [command, str(tmp_path)], catch_exceptions=False)


def test_bench_sharing_writes_tables_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def systems(*, hardware: Hardware, progress: object, lengths: object) -> list[SystemPoint]:
        asked.append((hardware.profile.name, lengths))
        return [
            SystemPoint(
                workload="mixed", system="ours", microbatch="1", num_microbatches=1, tokens_per_s=1.0, bubble_ratio=0.5
            )
        ]

    def curves(*, hardware: Hardware, progress: object, lengths: object) -> list[SharingPoint]:
        return [
            SharingPoint(
                workload=workload,
                num_stages=4,
                num_adapters=4,
                global_batch_size=16,
                microbatches_per_batch=2.0,
                apart_tokens_per_s=1.0,
                shared_tokens_per_s=2.0,
                speedup=2.0,
                own_gpu_tokens_per_s=None,
                mean_completion_ratio=1.0,
            )
            for workload in ("mixed", "even")
        ]

    monkeypatch.setattr("loraplex.simulator.sharing.system_points", systems)
    monkeypatch.setattr("loraplex.simulator.sharing.sharing_points", curves)
    single = typer.Typer()
    single.command()(commands.bench_sharing)
    done = CliRunner().invoke(
        single, ["-o", str(tmp_path / "results"), "--pictures", str(tmp_path), "--json"], catch_exceptions=False
    )
    content = json.loads(done.stdout)
    assert asked == [("llama-70b-h100-published", None)]
    assert content == json.loads((tmp_path / "results" / "sharing.json").read_text())
    assert content["lengths"] == "drawn from the shipped tables"
    assert (tmp_path / "results" / "sharing-curves.csv").read_text().count("\n") == 3
    assert (tmp_path / "sharing-systems.svg").exists()
