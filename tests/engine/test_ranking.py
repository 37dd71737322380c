"""Adapters of the same data are ranked, with what tells them apart."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from loraplex.engine.ranking import make_rankings
from loraplex.engine.show import ranking_table
from loraplex.planner.inputs.load_jobs import load_jobs
from loraplex.tests.engine.runs import LORAPLEX, command, finish, start
from loraplex.traces.errors import TraceError
from loraplex.traces.ranking import RankedAdapter, Ranking, load_rankings, save_rankings

JOB = """\
base_model: tiny
sequence_len: 32
output_dir: output
defaults: {{r: 2, target_modules: [q_proj], global_batch_size: 2, max_steps: 4}}
adapters:
  - name: grid
    datasets: [{{path: texts.jsonl}}]
    {more}
    grid: {{learning_rate: [1.0e-3, 2.0e-2], {seeds}lora_dropout: [0.0]}}
  - name: other
    datasets: [{{path: others.jsonl}}]
"""


def write(folder: Path, *, more: str = "", seeds: str = "") -> Path:
    for name, letter in (("texts", "a"), ("others", "b")):
        lines = [json.dumps({"prompt": f"{number} =", "completion": letter * (number + 1)}) for number in range(10)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "jobs.yaml").write_text(JOB.format(more=more, seeds=seeds), encoding="utf-8")
    return folder / "jobs.yaml"


def note(folder: Path, adapter: str, *, losses: list[float | None], looks: list[float | None]) -> None:
    metrics = [
        {"adapter": adapter, "step": step, "loss": loss, "learning_rate": 1e-3, "grad_norm": 1.0, "update_norm": 1.0,
         "tokens": 8, "ms": 1.0, "state": "taken"}
        for step, loss in enumerate(losses)
    ]  # fmt: skip
    evaluations = [{"adapter": adapter, "step": 2 * n, "loss": look, "best": True} for n, look in enumerate(looks, 1)]
    for name, lines in (("metrics", metrics), ("evaluations", evaluations)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}-{adapter}.jsonl").write_text(text, encoding="utf-8")


def test_the_lowest_validation_loss_counts_wherever_it_was(tmp_path: Path) -> None:
    loaded = load_jobs(write(tmp_path, more="val_split: 0.2"))
    slow, fast, _ = (job.name for job in loaded.jobs)
    note(tmp_path, slow, losses=[3.0, 2.0, 1.0, 0.5], looks=[2.5, 2.4])
    note(tmp_path, fast, losses=[3.0, 2.0, 1.5, 1.5], looks=[2.1, None])
    after = {slow: {"before": 0.1, "after": 2.3}, fast: {"before": 0.1, "after": 2.6}}
    (tmp_path / "validation.json").write_text(json.dumps(after), encoding="utf-8")
    (ranking,) = make_rankings(loaded, tmp_path)
    assert ranking == Ranking(
        by="validation loss",
        note="",
        adapters=(
            RankedAdapter(name=fast, loss=2.1, step=2, settings={"learning_rate": 2e-2}),
            RankedAdapter(name=slow, loss=2.3, step=4, settings={"learning_rate": 1e-3}),
        ),
    )


def test_without_validation_the_last_training_loss_counts_and_no_number_is_last(tmp_path: Path) -> None:
    loaded = load_jobs(write(tmp_path, seeds="seed: [1, 2], "))
    for job, loss in zip(loaded.jobs[:4], (None, 2.0, 1.0, 3.0), strict=True):
        note(tmp_path, job.name, losses=[0.5, loss], looks=[])
    (ranking,) = make_rankings(loaded, tmp_path)
    assert (ranking.by, ranking.note) == ("training loss", "")
    assert "since nothing is kept out (val_split)" in ranking.title()
    assert [row.loss for row in ranking.adapters[:3]] == [1.0, 2.0, 3.0]
    assert math.isnan(ranking.adapters[3].loss)
    assert ranking.adapters[0].settings == {"learning_rate": 2e-2, "seed": 1}
    save_rankings((ranking,), tmp_path / "ranking.json")
    (again,) = load_rankings(tmp_path / "ranking.json")
    assert repr(asdict(again)) == repr(asdict(ranking))
    (tmp_path / "ranking.json").write_text('[{"by": 1}]', encoding="utf-8")
    with pytest.raises(TraceError, match=r"is no ranking \(KeyError\('note'\)\); delete it or train again"):
        load_rankings(tmp_path / "ranking.json")


def test_other_samples_kept_out_are_told(tmp_path: Path) -> None:
    loaded = load_jobs(write(tmp_path, more="val_split: 0.2", seeds="seed: [1, 2], "))
    for job in loaded.jobs[:4]:
        note(tmp_path, job.name, losses=[1.0], looks=[1.0])
    (ranking,) = make_rankings(loaded, tmp_path)
    assert ranking.note == "each keeps out other samples, since their seeds or val_split differ"


def test_train_and_report_show_it(tmp_path: Path) -> None:
    write(tmp_path, more="val_split: 0.2")
    code, out, err = finish(start(command(*LORAPLEX, "train", "jobs.yaml", "--device", "cpu"), tmp_path), seconds=120)
    assert code == 0, err
    (ranking,) = load_rankings(tmp_path / "output" / "ranking.json")
    assert {row.name for row in ranking.adapters} == {"grid-dropout0.0-lr0.001", "grid-dropout0.0-lr0.02"}
    assert [row.loss for row in ranking.adapters] == sorted(row.loss for row in ranking.adapters)
    assert "best first, by lowest validation loss" in out
    assert "learning_rate=0.001" in out
    report = command(*LORAPLEX, "report", "output", "--json")
    code, out, err = finish(start(report, tmp_path), seconds=120)
    assert code == 0, err
    assert [row["name"] for row in json.loads(out)["rankings"][0]["adapters"]] == [row.name for row in ranking.adapters]
    page = (tmp_path / "output" / "report.html").read_text(encoding="utf-8")
    assert "Best first, by lowest validation loss." in page
    assert page.index(f"<td>{ranking.adapters[0].name}</td><td>1</td>") > 0
    resume = command(*LORAPLEX, "train", "jobs.yaml", "--device", "cpu", "--resume", "--json")
    code, out, err = finish(start(resume, tmp_path), seconds=120)
    assert (code, json.loads(out)["rankings"][0]["by"]) == (0, "validation loss"), err


def test_the_table_fits_80_columns_with_every_name_whole() -> None:
    long = RankedAdapter(name="a-" * 30, loss=1.25, step=30, settings={"r": 8, "learning_rate": 1e-4})
    console = Console(width=80, record=True)
    console.print(ranking_table(Ranking(by="training loss", note="", adapters=(long, long))))
    text = console.export_text()
    assert text.replace("\n", "").replace(" ", "").count("1.2500") == 2
    assert all(len(line) <= 80 for line in text.splitlines())


def test_settings_are_spelled_as_in_a_job_file() -> None:
    row = RankedAdapter(name="a", loss=1.0, step=3, settings={"max_grad_norm": None, "use_rslora": True, "r": 8})
    assert row.settings_text() == "max_grad_norm=null use_rslora=true r=8"
