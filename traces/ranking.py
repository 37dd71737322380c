"""Which of the adapters that learned from the same data did best: ranking.json, which training writes.

```
[{"by": "validation loss", "note": "",
  "adapters": [{"name": "words-r8", "loss": 1.2, "step": 30, "settings": {"r": 8}}]}]
```
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from .errors import TraceError
from .files import read_json, write_atomically

RankedBy = Literal["validation loss", "training loss"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedAdapter:
    """One adapter of a ranking."""

    name: str
    loss: float
    """nan where there is none that is a number."""
    step: int
    """Optimizer steps behind that loss."""
    settings: dict[str, Any]
    """What tells it from the others, by the job file's names."""

    def settings_text(self) -> str:
        """`r=8 learning_rate=0.0001`."""
        return " ".join(f"{name}={self.setting_text(name)}" for name in self.settings)

    def setting_text(self, name: str) -> str:
        """One of `settings` as a job file has it."""
        value = self.settings[name]
        return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Adapters of the same data, the lowest loss first and those without one last."""

    by: RankedBy
    note: str
    """What the reader must know to compare them; empty where nothing stands in the way."""
    adapters: tuple[RankedAdapter, ...]

    def title(self) -> str:
        """What it is a ranking by."""
        what = {
            "validation loss": "lowest validation loss",
            "training loss": "loss of its last step's global batch, since nothing is kept out (val_split)",
        }[self.by]
        return f"best first, by {what}"


def rankings_document(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """For --json and the file: a loss that is no number is null, since JSON knows none."""
    found = [asdict(ranking) for ranking in rankings]
    for ranking in found:
        ranking["adapters"] = [
            row | {"loss": row["loss"] if math.isfinite(row["loss"]) else None} for row in ranking["adapters"]
        ]
    return found


def save_rankings(rankings: Sequence[Ranking], path: Path) -> None:
    """Write the file."""
    write_atomically(path, json.dumps(rankings_document(rankings), indent=1, allow_nan=False) + "\n")


def load_rankings(path: Path) -> tuple[Ranking, ...]:
    """What `save_rankings` wrote; nothing where there is no file. Raises TraceError for another one."""
    if not path.is_file():
        return ()
    content: Any = read_json(path, what="ranking", writer="`loraplex train`")
    try:
        return tuple(
            Ranking(
                by=found["by"],
                note=found["note"],
                adapters=tuple(
                    RankedAdapter(**row | {"loss": math.nan if row["loss"] is None else row["loss"]})
                    for row in found["adapters"]
                ),
            )
            for found in content
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise TraceError(f"{path}: is no ranking ({error!r}); delete it or train again") from None
