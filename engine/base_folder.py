"""The folder with the base model's weights: the user's, the hub's, or the embedded tiny model written on demand."""

import os
import shutil
from pathlib import Path

from ..planner.errors import JobError
from ..planner.inputs.base_model import BaseModel
from .output import BASE_MODEL
from .tiny_model import write_tiny_model
from .weights import INDEX, SINGLE


def base_model_folder(model: BaseModel, *, output_dir: Path) -> Path:
    """Where the weights lie; makes or downloads them if need be. Raises JobError where they cannot be had."""
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
