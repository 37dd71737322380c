"""Which base model adapters were trained on, so that a checkpoint does not go on upon another one without a word."""

import hashlib
import json
import re
from pathlib import Path

import torch

from ..planner.inputs.base_model import BaseModel
from .weights import open_weights, weight_files

_SAMPLED = re.compile(r"model\.layers\.\d+\.self_attn\.q_proj\.weight")
"""Of these the first rows are looked at: one of each layer, and none that a fine-tuned copy would leave as it was."""
_ROWS = 8
_SETTINGS = ("rope_parameters", "rope_scaling", "rope_theta", "rms_norm_eps", "sliding_window")
"""What changes a model's outputs and not its weights."""


def base_identity(folder: Path, model: BaseModel, *, seed: int) -> str:
    """A digest of what is trained on: the same for a copy elsewhere or in other shards. Reads some kilobytes a layer.

    `seed` draws random weights. Raises JobError for weights that cannot be read.
    """
    drawn = seed if model.random_weights else None
    told = [model.family, model.num_layers, model.load_in_4bit, model.double_quant, drawn]
    told += [model.config.get(name) for name in _SETTINGS]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    files = {} if model.random_weights else weight_files(folder)
    for key in sorted(filter(_SAMPLED.fullmatch, files)):
        with open_weights(folder / files[key]) as file:
            rows = file.get_slice(key)[:_ROWS].contiguous()
        digest.update(f"{key} {rows.dtype}".encode() + rows.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
