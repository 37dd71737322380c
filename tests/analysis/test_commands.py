"""The commands `compare` and `report` as a user types them."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from loraplex.analysis import commands
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
