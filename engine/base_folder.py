"""The folder with the base model's weights: the user's, the hub's, or one written on demand (tiny, random weights)."""

import json
import os
import shutil
from pathlib import Path

from ..planner.errors import JobError
from ..planner.inputs.base_model import TINY, BaseModel
from ..planner.inputs.hub import SMALL_FILES, hub_folder
from ..traces.files import write_atomically
from .output import BASE_MODEL, RANDOM_BASE
from .tiny_model import write_tiny_model
from .weights import check_all_weights, has_all_weights


def base_model_folder(model: BaseModel, *, output_dir: Path) -> Path:
    """Where config.json and weights lie; makes or downloads them if need be. Raises JobError where they cannot be had.

    For random weights it is a folder with a config.json alone.
    """
    check_has_weights(model)
    if model.random_weights:
        return _config_only(output_dir / RANDOM_BASE, model)
    if model.folder is None:
        return _tiny(output_dir / BASE_MODEL)
    if has_all_weights(model.folder):
        return model.folder
    if not model.on_hub:
        check_all_weights(model.folder)
    patterns = (*SMALL_FILES, "*.safetensors")
    folder = hub_folder(model.name, patterns=patterns, is_complete=has_all_weights)
    # Without internet the hub's library hands out what the cache holds, complete or not.
    check_all_weights(folder, mend=f"run `hf download {model.name}` where there is internet")
    return folder


def base_reference(model: BaseModel, folder: Path) -> str:
    """What an adapter's config names its base model, whose files lie in `folder`: what PEFT can load it from.

    A hub id means the same everywhere. PEFT looks for a relative folder below the working directory, and not beside the
    adapter, so a folder is named by its whole path.
    """
    return model.name if model.on_hub else str(folder.resolve())


def check_has_weights(model: BaseModel) -> None:
    """Raise JobError for a shape whose weights are neither there nor to be drawn; looks at no files."""
    if model.folder is None and model.name != TINY and not model.random_weights:
        raise JobError(
            f"base_model {model.name!r} is a shape without weights; set random_weights (--random-weights), or give the "
            "folder of a model"
        )


def _config_only(folder: Path, model: BaseModel) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.json", json.dumps(dict(model.config), indent=2) + "\n")
    return folder


def _tiny(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(folder, ignore_errors=True)
        try:
            write_tiny_model(unfinished)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder
