"""What the engine leaves in a run's folder besides the files of traces/run_folder.py. Importing this needs no torch."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..traces.files import write_atomically

ADAPTERS: Final = "adapters"
"""Subfolder with one PEFT folder per adapter."""
CHECKPOINTS: Final = "checkpoints"
"""Subfolder with the newest checkpoints."""
BASE_MODEL: Final = "base-model"
"""Subfolder for the embedded model: its adapters need something to refer to."""
RANDOM_BASE: Final = "random-base"
"""Subfolder with the config.json of a base model whose weights are drawn."""
WORK: Final = ".run"
"""Subfolder for what workers hand each other; removed at the end."""
VALIDATION: Final = "validation.json"
"""By adapter, the mean loss of its validation tokens before and after training."""


def evaluations_name(adapter: str) -> str:
    """File name of one adapter's validation losses during training."""
    return f"evaluations-{adapter}.jsonl"


def note_validation(folder: Path, when: str, losses: Mapping[str, float]) -> None:
    """Add losses to the folder's validation file; `when` is "before" or "after"."""
    known = read_validation(folder)
    for adapter, loss in losses.items():
        known.setdefault(adapter, {})[when] = loss
    # JSON knows no nan and no infinity.
    told = {
        adapter: {at: loss if math.isfinite(loss) else None for at, loss in found.items()}
        for adapter, found in known.items()
    }
    write_atomically(folder / VALIDATION, json.dumps(told, indent=2, allow_nan=False) + "\n")


def read_validation(folder: Path) -> dict[str, dict[str, float]]:
    """What `note_validation` wrote: adapter -> before, after -> loss, nan for one that was no finite number.

    Empty where nothing was kept out.
    """
    path = folder / VALIDATION
    found: dict[str, dict[str, float | None]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {
        adapter: {when: math.nan if loss is None else loss for when, loss in losses.items()}
        for adapter, losses in found.items()
    }
