"""The commands `init` and `data show`, called as the command line calls them."""

import json
from pathlib import Path

import pytest

from loraplex.planner.commands import data_show, init
from loraplex.planner.errors import JobError


def test_init_writes_a_file_that_data_show_can_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(tmp_path / "mine.yaml")
    assert f"loraplex plan {tmp_path}/mine.yaml" in capsys.readouterr().out.replace("\n", "")
    data_show(tmp_path / "mine.yaml")
    out = capsys.readouterr().out
    assert [name for name in ("arithmetic", "conversions", "words") if f"{name}  " in out] == [
        "arithmetic",
        "conversions",
        "words",
    ]
    assert out.count("⟦") >= 4


def test_json_is_one_object_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(tmp_path / "mine.yaml", json=True)
    assert json.loads(capsys.readouterr().out) == {"job_file": f"{tmp_path}/mine.yaml"}
    data_show(tmp_path / "mine.yaml", adapter="words", sample=3, json=True)
    found = json.loads(capsys.readouterr().out)
    assert sorted(found) == ["adapters", "data_fingerprint", "job_file", "samples"]
    assert [(sample["adapter"], sample["index"]) for sample in found["samples"]] == [("words", 3)]


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    init(tmp_path / "mine.yaml")
    with pytest.raises(JobError, match="never overwritten"):
        init(tmp_path / "mine.yaml")


def test_text_from_users_is_never_read_as_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "[bold]x[/bold] [/]", "completion": "[red]y"}', encoding="utf-8")
    (tmp_path / "jobs.yaml").write_text(
        "base_model: tiny\nadapters: [{name: a, datasets: [{path: a.jsonl}]}]\n", encoding="utf-8"
    )
    data_show(tmp_path / "jobs.yaml")
    assert "[bold]x[/bold] [/]⟦[red]y<eos>⟧" in capsys.readouterr().out
