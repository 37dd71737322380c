"""A run that is finished is not resumed: it is said so, and nothing in its folder changes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from loraplex.engine import prepare as prepare_module
from loraplex.engine import train as train_module
from loraplex.engine.errors import EngineError
from loraplex.engine.finished import is_finished
from loraplex.engine.run_settings import RunSettings
from loraplex.engine.train import train
from loraplex.planner.errors import PlanError
from loraplex.planner.plan_file import load_plan
from loraplex.tests.engine.runs import JOB, LORAPLEX, TORCHRUN, command, finish, start

SAID = (
    "loraplex: the run in output is finished, and nothing was done: its adapters lie in output/adapters. To train "
    "further, begin a new run from them, with init_adapter and another output_dir; --overwrite in place of --resume "
    "trains jobs.yaml anew\n"
)


@pytest.fixture
def finished(trained: tuple[Path, dict[str, object]], tmp_path: Path) -> tuple[Path, dict[str, object]]:
    """A job file's folder with its finished run, to do with as one likes, and what the run said with --json."""
    folder = tmp_path / "copied"
    shutil.copytree(trained[0].parent, folder)
    return folder, trained[1]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_nothing_is_touched_and_the_run_is_told_again(finished: tuple[Path, dict[str, object]]) -> None:
    folder, said = finished
    before = contents(folder)
    resume = command(*LORAPLEX, "train", "jobs.yaml", "--resume", "--json")
    code, out, err = finish(start(resume, folder), seconds=120)
    assert (code, err) == (0, SAID)
    assert json.loads(out) == said | {"recompute": None}
    assert contents(folder) == before
    # Where only the pipeline is another, there is nothing left to do either.
    (folder / "jobs.yaml").write_text(JOB.replace("stages: 2", "stages: 3"), encoding="utf-8")
    before = contents(folder)
    code, _, err = finish(start(resume, folder), seconds=120)
    assert (code, err) == (0, SAID)
    assert contents(folder) == before


def test_processes_that_torchrun_starts_end_at_once(finished: tuple[Path, dict[str, object]]) -> None:
    folder, _ = finished
    before = contents(folder)
    code, _, err = finish(start(command(*TORCHRUN, "jobs.yaml", "--resume"), folder), seconds=120)
    assert code == 0, err
    assert err.count(SAID) == 1
    assert contents(folder) == before


def test_more_epochs_are_refused_as_before(finished: tuple[Path, dict[str, object]]) -> None:
    folder, _ = finished
    (folder / "jobs.yaml").write_text(JOB.replace("num_epochs: 3", "num_epochs: 4"), encoding="utf-8")
    with pytest.raises(PlanError, match=r"for 42 steps, the job file for 56; a run goes on as it was planned"):
        train(RunSettings(job_file=folder / "jobs.yaml", device="cpu", resume=True))


@pytest.mark.parametrize("own_plan", [False, True])
def test_a_new_run_in_its_folder_that_breaks_is_not_finished(
    finished: tuple[Path, dict[str, object]], monkeypatch: pytest.MonkeyPatch, own_plan: bool
) -> None:
    folder, _ = finished
    plan = load_plan(folder / "output" / "plan.json")
    assert is_finished(folder / "output", plan)

    def broken(*_: object, **__: object) -> None:
        raise EngineError("a worker died")

    monkeypatch.setattr(train_module, "launch", broken)
    shutil.copy(folder / "output" / "plan.json", folder / "own.json")
    settings = RunSettings(
        job_file=folder / "jobs.yaml", device="cpu", plan_file=folder / "own.json" if own_plan else None
    )
    with pytest.raises(EngineError, match="a worker died"):
        train(settings)
    assert not is_finished(folder / "output", plan)


def test_job_file_and_profile_are_read_once(
    finished: tuple[Path, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = finished
    timeline, read = folder / "output" / "timeline-measured.json", []

    def counted(own: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object, **named: object) -> object:
            read.append(own.__name__)
            return own(*given, **named)

        return call

    for module, name in ((prepare_module, "load_jobs"), (train_module, "load_profile")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    monkeypatch.setattr(train_module, "launch", lambda *_, **__: shutil.copy(folder / "kept.json", timeline))
    shutil.copy(timeline, folder / "kept.json")
    train(RunSettings(job_file=folder / "jobs.yaml", device="cpu", profile="tiny-cpu"))
    assert read == ["load_profile", "load_jobs"]
