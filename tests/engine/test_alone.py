"""Two runs never share an output folder at the same time."""

import sys
from pathlib import Path

import pytest

from loraplex.cli import main
from loraplex.engine.alone import alone_as_first_worker, alone_in
from loraplex.engine.watchdog import LAUNCHER
from loraplex.planner.errors import PlanError
from loraplex.tests.engine.runs import write_job


def taken(folder: Path) -> bool:
    try:
        with alone_in(folder):
            return False
    except PlanError:
        return True


def test_a_folder_is_held_until_the_run_has_ended(tmp_path: Path) -> None:
    with alone_in(tmp_path):
        assert taken(tmp_path)
    assert not taken(tmp_path)
    with pytest.raises(RuntimeError), alone_in(tmp_path):
        raise RuntimeError
    assert not taken(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_stays_where_something_was_written_into_it(tmp_path: Path) -> None:
    empty, full = tmp_path / "a" / "empty", tmp_path / "full"
    with alone_in(empty):
        assert empty.is_dir()
    with alone_in(full):
        (full / "plan.json").touch()
    assert (empty.exists(), full.exists()) == (False, True)
    # One that was there before is somebody's.
    empty.mkdir()
    with alone_in(empty):
        pass
    assert empty.exists()


@pytest.mark.parametrize(
    ("variables", "holds"),
    [({"RANK": "0"}, True), ({"RANK": "1"}, False), ({"RANK": "0", LAUNCHER: "17"}, False)],
)
def test_of_torchruns_workers_the_first_holds_it_and_of_ours_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], holds: bool
) -> None:
    for name in ("RANK", LAUNCHER):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with alone_as_first_worker(tmp_path):
        assert taken(tmp_path) is holds


@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--resume"]])
def test_train_touches_nothing_of_a_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    job, output = write_job(tmp_path), tmp_path / "output"
    monkeypatch.setattr(sys, "argv", ["loraplex", "train", str(job), *more])
    output.mkdir()
    (output / "plan.json").write_text("of the first run", encoding="utf-8")
    with alone_in(output), pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.splitlines()[-1].endswith("output is in use by another run; wait for its end, or give another --output")
    assert [path.name for path in output.iterdir()] == ["plan.json"]
    assert (output / "plan.json").read_text(encoding="utf-8") == "of the first run"
