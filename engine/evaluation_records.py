"""evaluations-ADAPTER.jsonl: one line per validation loss during training. Importing this needs no torch."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ..traces.files import write_atomically
from .disk import writing
from .output import evaluations_name


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRecord:
    """One validation loss of one adapter."""

    adapter: str
    step: int
    """Optimizer steps behind it."""
    loss: float
    """Mean over the target tokens of all its validation samples."""
    best: bool
    """Whether no earlier one was as low."""


class EvaluationWriter:
    """Appends records to `evaluations-ADAPTER.jsonl` in a folder."""

    def __init__(self, folder: Path, *, steps_done: Mapping[str, int]) -> None:
        """Keep what an interrupted run had found by so many steps: the rest is evaluated again."""
        self._folder = folder
        for adapter, num_steps in steps_done.items():
            path = folder / evaluations_name(adapter)
            if path.is_file():
                kept = [record for record in read_evaluations(path) if record.step <= num_steps]
                path.unlink() if not kept else write_atomically(path, "".join(map(_line, kept)))

    def write(self, record: EvaluationRecord) -> None:
        """Append one line."""
        path = self._folder / evaluations_name(record.adapter)
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(_line(record))


def read_evaluations(path: Path) -> tuple[EvaluationRecord, ...]:
    """The records of one file, none where there is no file; a loss that was written as null is nan."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = []
    for line in lines:
        values = json.loads(line)
        found.append(EvaluationRecord(**values | ({"loss": math.nan} if values["loss"] is None else {})))
    return tuple(found)


def _line(record: EvaluationRecord) -> str:
    values = asdict(record) | ({} if math.isfinite(record.loss) else {"loss": None})
    return json.dumps(values, allow_nan=False) + "\n"
