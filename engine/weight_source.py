"""Where the frozen weights of a stage come from."""

from dataclasses import dataclass
from typing import Final

from ..planner.inputs.base_model import BaseModel


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSource:
    """Read from the model folder's safetensors, or drawn."""

    random_seed: int | None = None
    """Draw every weight from this seed and its name, on the stage's device; the folder needs a config.json only."""

    @classmethod
    def of(cls, model: BaseModel, *, seed: int = 0) -> "WeightSource":
        """What a base model asks for."""
        return cls(random_seed=seed if model.random_weights else None)


FROM_FOLDER: Final = WeightSource()
"""Whatever lies in the model folder."""
