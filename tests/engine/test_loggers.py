"""TensorBoard and Weights & Biases hear what the metrics files hold."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loraplex.engine import loggers as module
from loraplex.engine.evaluation_records import EvaluationRecord
from loraplex.engine.loggers import check_loggers, log_evaluation, log_step, logger_names, open_loggers
from loraplex.engine.metrics import StepRecord
from loraplex.planner.errors import JobError

STEP = StepRecord(
    adapter="one", step=4, loss=1.5, learning_rate=1e-3, grad_norm=0.5, update_norm=0.25, tokens=80, ms=9.0
)
LOST = StepRecord(
    adapter="two",
    step=0,
    loss=float("nan"),
    learning_rate=1e-3,
    grad_norm=float("nan"),
    update_norm=0.0,
    tokens=8,
    ms=9.0,
    state="quarantined",
)
LOOK = EvaluationRecord(adapter="one", step=5, loss=2.5, best=True)


def test_tensorboard_gets_a_curve_for_each_number_of_each_adapter(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = open_loggers(["tensorboard"], folder=tmp_path, settings={})
    for record in (STEP, LOST):
        log_step(made, record)
    log_evaluation(made, LOOK)
    for logger in made:
        logger.close()
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    found = {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    assert found == {
        "one/loss": [(5, 1.5)],
        "one/learning_rate": [(5, pytest.approx(1e-3))],
        "one/grad_norm": [(5, 0.5)],
        "one/update_norm": [(5, 0.25)],
        "one/tokens": [(5, 80.0)],
        "one/validation_loss": [(5, 2.5)],
        # What is no number is left out.
        "two/learning_rate": [(1, pytest.approx(1e-3))],
        "two/update_norm": [(1, 0.0)],
        "two/tokens": [(1, 8.0)],
    }


def test_wandb_gets_one_run_with_an_axis_for_each_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, Any]] = []

    class Run:
        def define_metric(self, name: str, *, step_metric: str) -> None:
            said.append(("axis", (name, step_metric)))

        def log(self, values: dict[str, float]) -> None:
            said.append(("log", values))

        def finish(self) -> None:
            said.append(("finish", None))

    def init(*, name: str, dir: str, config: dict[str, object]) -> Run:
        said.append(("init", (name, dir, config)))
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, __spec__=object()))
    made = open_loggers(["wandb", "wandb"], folder=tmp_path / "output", settings={"one": {"r": 4}})
    log_step(made, STEP)
    log_evaluation(made, LOOK)
    for logger in made:
        logger.close()
    assert said == [
        ("init", ("output", str(tmp_path / "output"), {"one": {"r": 4}})),
        ("axis", ("one/*", "one/step")),
        (
            "log",
            {
                "one/step": 5,
                "one/loss": 1.5,
                "one/learning_rate": 1e-3,
                "one/grad_norm": 0.5,
                "one/update_norm": 0.25,
                "one/tokens": 80.0,
            },
        ),
        ("log", {"one/step": 5, "one/validation_loss": 2.5}),
        ("finish", None),
    ]


@pytest.mark.timeout(120)
def test_wandb_itself_takes_it_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "output").mkdir()
    made = open_loggers(["wandb"], folder=tmp_path / "output", settings={"one": {"r": 4}})
    log_step(made, STEP)
    log_evaluation(made, LOOK)
    for logger in made:
        logger.close()
    assert list((tmp_path / "output" / "wandb").glob("offline-run-*/*.wandb"))


def test_who_is_not_logged_in_to_wandb_hears_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise RuntimeError("No API key configured.\nUse `wandb login`")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, __spec__=object()))
    with pytest.raises(JobError) as error:
        open_loggers(["wandb"], folder=tmp_path, settings={})
    assert str(error.value) == (
        "report_to: wandb could not start (No API key configured. Use `wandb login`); run `wandb login`, set "
        "WANDB_MODE=offline, or leave it out"
    )


@pytest.mark.parametrize(("resumed", "num_runs"), [(False, 1), (True, 2)])
def test_only_a_resumed_run_goes_on_with_the_curves_that_are_there(
    tmp_path: Path, resumed: bool, num_runs: int
) -> None:
    pytest.importorskip("tensorboard")
    for again in (False, resumed):
        (logger,) = open_loggers(["tensorboard"], folder=tmp_path, settings={}, resumed=again)
        log_step([logger], STEP)
        logger.close()
        # Names hold seconds: the next run is another.
        for path in (tmp_path / "tensorboard").iterdir():
            path.rename(path.with_name(path.name + ".before") if ".before" not in path.name else path)
    assert len(list((tmp_path / "tensorboard").iterdir())) == num_runs


def test_a_library_that_is_not_there_is_named_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(JobError, match=r"wandb needs a library that is not installed; pip install 'loraplex\[wandb\]'"):
        check_loggers(["wandb"])


def test_a_logger_that_is_none_is_refused() -> None:
    assert logger_names(["wandb", "tensorboard"]) == ("wandb", "tensorboard")
    with pytest.raises(JobError, match="--report-to mlflow is unknown; choose from tensorboard, wandb"):
        logger_names(["mlflow"])
