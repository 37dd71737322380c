"""metrics-ADAPTER.jsonl: one line per optimizer step."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from ..planner.errors import JobError
from ..traces.files import write_atomically
from ..traces.run_folder import metrics_name
from .disk import writing
from .learning_rate import RISKY_RATE

StepState = Literal["taken", "skipped", "quarantined", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One optimizer step of one adapter, as the last stage knows it."""

    adapter: str
    step: int
    loss: float
    """Before the step: mean over the target tokens of the whole global batch."""
    learning_rate: float
    grad_norm: float
    """Over all layers, before clipping; nan where the loss is no finite number."""
    update_norm: float
    """Norm of the change of the weights."""
    tokens: int
    """Of the global batch."""
    ms: float
    """Since the run, or the resumed part of it, began."""
    state: StepState = "taken"
    """Otherwise the weights stayed as they were; where quarantined or stopped (early) for good: no line follows.
    Behind a step at a risky rate (learning_rate.py) they went back to those before that step."""


class MetricsWriter:
    """Appends records to `metrics-ADAPTER.jsonl` in a folder, one whole line at a time."""

    def __init__(self, folder: Path, *, steps_done: Mapping[str, int]) -> None:
        """Keep the first `steps_done[adapter]` lines of what an interrupted run left: the others are taken again."""
        self._folder = folder
        for adapter, num_steps in steps_done.items():
            path = folder / metrics_name(adapter)
            lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
            write_atomically(path, "".join(line + "\n" for line in lines[:num_steps]))

    def write(self, record: StepRecord) -> None:
        """Append one line; JSON knows no nan and no infinity, so both are written as null."""
        values = {key: None if _is_nonfinite(value) else value for key, value in asdict(record).items()}
        path = self._folder / metrics_name(record.adapter)
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, allow_nan=False) + "\n")


def read_metrics(path: Path) -> tuple[StepRecord, ...]:
    """The records of one file; what was written as null is nan. Raises JobError for a line that is none of ours."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            values: dict[str, Any] = json.loads(line)
            found.append(StepRecord(**values | {key: math.nan for key, value in values.items() if value is None}))
        except (ValueError, TypeError, AttributeError) as error:
            raise JobError(f"{path}:{number}: is no record of a step ({error}); delete that line") from None
    return tuple(found)


def steps_kept(records: Sequence[StepRecord]) -> int:
    """Steps that one adapter's weights hold at its end: those taken, less those that it went back behind."""
    return sum(record.state == "taken" for record in records) - len(steps_undone(records))


def steps_undone(records: Sequence[StepRecord]) -> tuple[int, ...]:
    """Steps at a risky rate that were taken and, since the next loss or gradient was no number, taken back."""
    return tuple(
        before.step
        for before, record in pairwise(records)
        if record.state in ("skipped", "quarantined")
        and not (math.isfinite(record.loss) and math.isfinite(record.grad_norm))
        and before.state == "taken"
        and before.learning_rate >= RISKY_RATE
    )


def _is_nonfinite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
