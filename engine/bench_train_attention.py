"""Which attention the packed systems of a `bench train` use: one for all, ours and the peers, so that they compare."""

import json
import subprocess
import sys

from ..planner.inputs.base_model import BaseModel
from ..planner.model_shapes import ModelShapes
from ..traces.errors import InputError
from .flash_attention import CHOICES, HEAD_DIMS, MEND, asked_attention

_WHY_NOT = (
    "import json, torch; from loraplex.engine.flash_attention import why_no_flash; "
    "print(json.dumps(why_no_flash(torch.device('cuda', 0))))"
)


def settled_attention(asked: str, *, device: str, model: BaseModel) -> str:
    """torch or flash, where `auto` leaves it to the environment, and that to what is there.

    Raises InputError for an unknown word, flash where it cannot serve, or a config.json that lacks a size.
    """
    if asked not in CHOICES:
        raise InputError(f"--attention {asked} is unknown; choose from {', '.join(CHOICES)}")
    wanted = asked_attention() if asked == "auto" else asked
    if wanted == "torch":
        return "torch"
    why_not = _why_not(device, model)
    if why_not is None:
        return "flash"
    if wanted == "flash":
        raise InputError(f"--attention flash: {why_not}; {MEND}")
    return "torch"


def _why_not(device: str, model: BaseModel) -> str | None:
    if device != "cuda":
        return f"FlashAttention-4 needs a GPU, and this runs on device {device}"
    head_dim = ModelShapes.of(model).head_dim
    if head_dim not in HEAD_DIMS:
        return f"heads of {head_dim} stay with torch, only those of {' and '.join(map(str, HEAD_DIMS))} do not"
    # In a process of its own: a CUDA context in this one would take memory from those that are measured.
    done = subprocess.run([sys.executable, "-c", _WHY_NOT], capture_output=True, text=True, check=True)
    found: str | None = json.loads(done.stdout.splitlines()[-1])
    return found
