"""The folder with the base model's weights: the user's, the hub's, or one written on demand (tiny, random weights)."""

import json
import os
import shutil
from pathlib import Path

from ..planner.errors import JobError
from ..planner.inputs.base_model import TINY, BaseModel
from ..traces.files import write_atomically
from .output import BASE_MODEL, RANDOM_BASE
from .tiny_model import write_tiny_model
from .weights import INDEX, SINGLE


def base_model_folder(model: BaseModel, *, output_dir: Path) -> Path:
    """Where config.json and weights lie; makes or downloads them if need be. Raises JobError where they cannot be had.

    For random weights it is a folder with a config.json alone.
    """
    check_has_weights(model)
    if model.random_weights:
        return _config_only(output_dir / RANDOM_BASE, model)
    if model.folder is None:
        return _tiny(output_dir / BASE_MODEL)
    if (model.folder / INDEX).is_file() or (model.folder / SINGLE).is_file():
        return model.folder
    if (Path(model.name)).exists():
        raise JobError(f"base_model '{model.name}' has no safetensors weights; only those are read")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model.name, allow_patterns=["*.json", "*.jinja", "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise JobError(
            f"base_model '{model.name}': its weights could not be had from the hub ({type(error).__name__}); "
            "download it and give its folder"
        ) from error


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
