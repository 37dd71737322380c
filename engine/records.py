"""Where steps and validation losses go in the one process that hears them: files, loggers, and whoever watches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from .evaluation_records import EvaluationRecord, EvaluationWriter
from .loggers import Logger, log_evaluation, log_step
from .metrics import MetricsWriter, StepRecord


class Listener(Protocol):
    """Hears how training goes, in the one process that writes the metrics (the last stage of replica 0)."""

    def loading(self, number: int, num_files: int) -> None:
        """The first worker opens that file of its weights."""
        ...

    def begin(self, num_steps: Mapping[str, int], steps_done: Mapping[str, int]) -> None:
        """Steps of each adapter in all, and those a resumed run has behind it."""
        ...

    def advance(self, record: StepRecord) -> None:
        """A step has been taken."""
        ...

    def evaluated(self, record: EvaluationRecord) -> None:
        """A validation loss is known."""
        ...


class Records:
    """Hands every record to all of them. What an interrupted run wrote beyond `steps_done` is cut off first."""

    def __init__(
        self,
        folder: Path,
        *,
        listener: Listener,
        loggers: Sequence[Logger],
        num_steps: Mapping[str, int],
        steps_done: Mapping[str, int],
    ) -> None:
        self._metrics = MetricsWriter(folder, steps_done=steps_done)
        self._evaluations = EvaluationWriter(folder, steps_done=steps_done)
        self._listener = listener
        self._loggers = loggers
        listener.begin(num_steps, steps_done)

    def step(self, record: StepRecord) -> None:
        """A step has been taken, or left out."""
        self._metrics.write(record)
        log_step(self._loggers, record)
        self._listener.advance(record)

    def evaluation(self, record: EvaluationRecord) -> None:
        """A validation loss is known."""
        self._evaluations.write(record)
        log_evaluation(self._loggers, record)
        self._listener.evaluated(record)

    def close(self) -> None:
        """No more will come."""
        for logger in self._loggers:
            logger.close()
