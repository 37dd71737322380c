"""Whether a model folder holds what its config.json describes: told before any process starts, from files' heads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..planner.errors import JobError
from ..planner.inputs.base_model import BaseModel
from ..planner.model_shapes import NF4_BLOCK
from .model import read_config, whole_linears, without_weights
from .weights import open_weights, stored_name, weight_files


def check_base(folder: Path, model: BaseModel) -> None:
    """Raise JobError for a config that transformers refuses, and for weights that are missing or do not fit it."""
    config = read_config(folder)
    whole = without_weights(config, folder=folder)
    if model.load_in_4bit:
        _check_blocks(folder, whole)
    if not model.random_weights:
        files = weight_files(folder)
        shapes = _shapes(folder, files)
        for name, parameter in whole.named_parameters(remove_duplicate=False):
            key = stored_name(name, files, folder, tied_head=bool(config.tie_word_embeddings))
            _check_weight(folder, key, tuple(parameter.shape), files, shapes)


def _check_blocks(folder: Path, whole: nn.Module) -> None:
    for name in whole_linears(folder):
        linear: Any = whole.get_submodule(name)
        width: int = linear.in_features
        if width % NF4_BLOCK:
            raise JobError(
                f"base_model '{folder}': {name} reads {width} features, which load_in_4bit cannot cut into blocks of "
                f"{NF4_BLOCK}; leave load_in_4bit out"
            )


def _shapes(folder: Path, files: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name in dict.fromkeys(files.values()):
        with open_weights(folder / name) as file:
            found |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no mapping)
    return found


def _check_weight(
    folder: Path,
    key: str,
    shape: tuple[int, ...],
    files: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    if key not in shapes:
        raise JobError(f"{folder / files[key]} has no weight '{key}'; download the model anew")
    # In 4 bits a weight lies there packed: what it stands for is checked when it is read.
    if f"{key}.absmax" not in files and shapes[key] != shape:
        raise JobError(
            f"{folder / files[key]}: weight '{key}' has shape {shapes[key]}, config.json asks for {shape}; give the "
            "weights and the config.json of one model"
        )
