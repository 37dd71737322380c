"""TensorBoard and Weights & Biases, each through its own library; metrics-ADAPTER.jsonl is written whatever is asked.

A logger hears every step and every validation loss of every adapter, as ADAPTER/NAME, counted in the adapter's steps.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ..planner.errors import JobError
from ..planner.jobs import LoggerName
from .evaluation_records import EvaluationRecord
from .metrics import StepRecord

LOGS = "tensorboard"
"""Subfolder for TensorBoard's event files."""
_MODULES: Mapping[LoggerName, str] = {"tensorboard": "tensorboard", "wandb": "wandb"}


class Logger(Protocol):
    """Somewhere to write numbers."""

    def log(self, adapter: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one adapter after so many of its steps."""
        ...

    def close(self) -> None:
        """No more will come."""
        ...


def logger_names(given: Sequence[str]) -> tuple[LoggerName, ...]:
    """Raise JobError for a name that is none."""
    known = {str(name): name for name in _MODULES}
    for name in given:
        if name not in known:
            raise JobError(f"--report-to {name} is unknown; choose from {', '.join(known)}")
    return tuple(known[name] for name in given)


def check_loggers(names: Sequence[LoggerName]) -> None:
    """Raise JobError for one whose library is not installed."""
    for name in names:
        if find_spec(_MODULES[name]) is None:
            raise JobError(
                f"report_to: {name} needs a library that is not installed; pip install 'loraplex[{name}]', or leave it "
                "out"
            )


def open_loggers(
    names: Sequence[LoggerName], *, folder: Path, settings: Mapping[str, object], resumed: bool = False
) -> tuple[Logger, ...]:
    """Start the loggers; `settings` describe the run to those that keep such things.

    Raises JobError for one that cannot start: not installed, or not logged in.
    """
    check_loggers(names)
    makers: Mapping[LoggerName, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoardLogger(folder / LOGS, resumed=resumed),
        "wandb": lambda: WandbLogger(folder, settings=settings),
    }
    return tuple(makers[name]() for name in dict.fromkeys(names))


class TensorBoardLogger:
    """Event files in a folder: `tensorboard --logdir FOLDER`. Those of the run before go where this one begins anew."""

    def __init__(self, folder: Path, *, resumed: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Like its metrics and checkpoints; two runs in one folder are drawn as one curve that jumps back.
        for older in () if resumed else folder.glob("events.out.tfevents.*"):
            older.unlink()
        self._writer: Any = SummaryWriter(str(folder))

    def log(self, adapter: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{adapter}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class WandbLogger:
    """One run for the whole job. Project, entity and mode (offline, ...) come from wandb's own variables."""

    def __init__(self, folder: Path, *, settings: Mapping[str, object]) -> None:
        import wandb

        try:
            self._run: Any = wandb.init(name=folder.resolve().name, dir=str(folder), config=dict(settings))
        except Exception as error:
            # Not logged in, no network, no such entity: its errors have no common base in all versions.
            raise JobError(
                f"report_to: wandb could not start ({' '.join(str(error).split())}); run `wandb login`, set "
                "WANDB_MODE=offline, or leave it out"
            ) from None
        self._known: set[str] = set()

    def log(self, adapter: str, step: int, values: Mapping[str, float]) -> None:
        if adapter not in self._known:
            # Adapters step at their own pace: each has an axis of its own.
            self._run.define_metric(f"{adapter}/*", step_metric=f"{adapter}/step")
            self._known.add(adapter)
        self._run.log({f"{adapter}/step": step, **{f"{adapter}/{name}": value for name, value in values.items()}})

    def close(self) -> None:
        self._run.finish()


def log_step(loggers: Iterable[Logger], record: StepRecord) -> None:
    """Tell all of a step."""
    values = {
        "loss": record.loss,
        "learning_rate": record.learning_rate,
        "grad_norm": record.grad_norm,
        "update_norm": record.update_norm,
        "tokens": float(record.tokens),
    }
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    for logger in loggers:
        logger.log(record.adapter, record.step + 1, finite)


def log_evaluation(loggers: Iterable[Logger], record: EvaluationRecord) -> None:
    """Tell all of a validation loss."""
    if math.isfinite(record.loss):
        for logger in loggers:
            logger.log(record.adapter, record.step, {"validation_loss": record.loss})
