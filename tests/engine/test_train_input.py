"""Input that `loraplex train` cannot use: exit code 2 and one message before anything starts."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from loraplex.cli import main
from loraplex.engine import train as train_module
from loraplex.planner.plan_file import load_plan, save_plan
from loraplex.tests.engine.runs import JOB, write_job


def no_plan(folder: Path, text: str) -> None:
    (folder / "plan.json").unlink()


def a_plan_for_other_data(folder: Path, text: str) -> None:
    line = '{"prompt": "1", "completion": "2"}\n'
    (folder / "sums.jsonl").write_text(line * 70, encoding="utf-8")


def a_plan_for_another_rate(folder: Path, text: str) -> None:
    (folder / "jobs.yaml").write_text(JOB.replace("5e-3", "6e-3"), encoding="utf-8")


def a_plan_for_other_adapters(folder: Path, text: str) -> None:
    (folder / "jobs.yaml").write_text(JOB.replace("name: sums", "name: totals"), encoding="utf-8")


def a_rank_beyond_the_kernels(folder: Path, text: str) -> None:
    (folder / "jobs.yaml").write_text(JOB.replace("r: 4", "r: 300"), encoding="utf-8")


def a_plan_edited_by_hand(folder: Path, text: str) -> None:
    (folder / "plan.json").write_text(text.replace('"num_stages": 2', '"num_stages": 1'), encoding="utf-8")


def a_plan_whose_backwards_are_split(folder: Path, text: str) -> None:
    save_plan(replace(load_plan(folder / "plan.json"), schedule="zb-h1"), folder / "plan.json")


def a_plan_with_two_chunks_a_stage(folder: Path, text: str) -> None:
    save_plan(replace(load_plan(folder / "plan.json"), schedule="interleaved-2"), folder / "plan.json")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_plan, "plan.json does not exist; make it with loraplex plan "),
        (a_plan_for_other_data, "plan.json was made for other data (fingerprint "),
        (a_plan_for_another_rate, "plan.json holds other optimizer of adapter 'sums' than the job file; make it anew"),
        (a_plan_for_other_adapters, "plan.json trains the adapters ['sums', 'echoes'], the job file ['totals', 'ech"),
        (a_plan_edited_by_hand, "plan.json"),
        (a_plan_whose_backwards_are_split, "schedule 'zb-h1' holds BACKWARD_INPUT actions; the engine does not split"),
        (a_plan_with_two_chunks_a_stage, "schedule 'interleaved-2' has 2 model chunks a stage; the engine runs"),
        (a_rank_beyond_the_kernels, "jobs.yaml:8: adapters[0].r: input should be less than or equal to 256, not 300"),
    ],
)
def test_bad_input_ends_with_2_and_one_message_before_anything_starts(
    trained: tuple[Path, dict[str, object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path, str], None],
    message: str,
) -> None:
    job = write_job(tmp_path)
    text = (trained[0] / "plan.json").read_text(encoding="utf-8")
    (tmp_path / "plan.json").write_text(text, encoding="utf-8")
    spoil(tmp_path, text)
    monkeypatch.setattr(sys, "argv", ["loraplex", "train", str(job), "--plan", str(tmp_path / "plan.json")])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.strip().splitlines()[-1].startswith("loraplex: error: ")
    assert message in err
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("schedule", ["zb-h1", "interleaved-2"])
def test_a_job_files_schedule_that_is_not_run_ends_with_2_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], schedule: str
) -> None:
    job = write_job(tmp_path)
    job.write_text(JOB.replace("{stages: 2}", f"{{stages: 2, schedule: {schedule}}}"), encoding="utf-8")
    monkeypatch.setattr(train_module, "launch", lambda *_, **__: pytest.fail("started"))
    monkeypatch.setattr(sys, "argv", ["loraplex", "train", str(job)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.strip().splitlines()[-1].startswith(f"loraplex: error: schedule '{schedule}' ")
    assert "choose 1f1b, or simulate this one" in err.strip().splitlines()[-1]


def test_going_on_and_starting_anew_exclude_each_other_before_the_plan_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_job(tmp_path)
    monkeypatch.setattr(sys, "argv", ["loraplex", "train", str(job), "--resume", "--overwrite"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err == "loraplex: error: --resume goes on and --overwrite starts anew; give one of them\n"
    assert not (tmp_path / "output").exists()
