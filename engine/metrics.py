"""metrics.jsonl: one line per optimizer step of an adapter."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One optimizer step of one adapter, as the last stage knows it."""

    adapter: str
    step: int
    loss: float
    """Before the step: mean over the target tokens of the whole global batch."""
    learning_rate: float
    grad_norm: float
    """Over all layers, before clipping."""
    update_norm: float
    """Norm of the change of the weights."""
    tokens: int
    """Of the global batch."""
    ms: float
    """Since the run, or the resumed part of it, began."""


class MetricsWriter:
    """Appends records to `<folder>/<adapter>.jsonl`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def keep_first(self, adapter: str, num_steps: int) -> None:
        """Drop the lines of steps from `num_steps` on: those a resumed run will take again."""
        path = self._folder / f"{adapter}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() and num_steps else []
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in lines[:num_steps]), encoding="utf-8")
        temporary.replace(path)

    def write(self, record: StepRecord) -> None:
        """Append one line at once, so that a reader sees whole lines."""
        with (self._folder / f"{record.adapter}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")


def read_metrics(path: Path) -> tuple[StepRecord, ...]:
    """The records of one file."""
    return tuple(StepRecord(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())
