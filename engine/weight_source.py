"""Where the frozen weights of a stage come from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ..planner.inputs.base_model import BaseModel


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSource:
    """Read from the model folder's safetensors, or drawn."""

    random_seed: int | None = None
    """Draw every weight from this seed and its name, on the stage's device; the folder needs a config.json only."""

    report: Callable[[int, int], None] | None = field(default=None, compare=False)
    """Hears (this file, files in all) as files are opened."""

    @classmethod
    def of(cls, model: BaseModel, *, seed: int = 0, report: Callable[[int, int], None] | None = None) -> "WeightSource":
        """What a base model asks for."""
        return cls(random_seed=seed if model.random_weights else None, report=report)


FROM_FOLDER: Final = WeightSource()
"""Whatever lies in the model folder."""
