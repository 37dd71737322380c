"""Where the frozen weights of a stage come from, and in what form they are held."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ..planner.inputs.base_model import BaseModel
from .place_weight import Nf4Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSource:
    """Read from the model folder's safetensors, or drawn; dense, or in 4 bits."""

    random_seed: int | None = None
    """Draw every weight from this seed and its name, on the stage's device; the folder needs a config.json only."""

    nf4: Nf4Settings | None = None
    """Hold the decoder layers' linears in 4 bits, rounded as they come in; None: as they come."""
    report: Callable[[int, int], None] | None = field(default=None, compare=False)
    """Hears (this file, files in all) as files are opened."""

    @classmethod
    def of(cls, model: BaseModel, *, seed: int = 0, report: Callable[[int, int], None] | None = None) -> "WeightSource":
        """What a base model asks for."""
        return cls(
            random_seed=seed if model.random_weights else None,
            nf4=Nf4Settings(double_quant=model.double_quant) if model.load_in_4bit else None,
            report=report,
        )


FROM_FOLDER: Final = WeightSource()
"""Whatever lies in the model folder."""
