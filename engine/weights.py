"""Read a stage's weights from safetensors shards; files that hold none of them are never opened."""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..planner.errors import JobError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def weight_files(folder: Path) -> dict[str, str]:
    """File name of every weight of a model folder. Raises JobError where there are no safetensors files."""
    index = folder / INDEX
    if index.is_file():
        try:
            mapping = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (json.JSONDecodeError, KeyError) as error:
            raise JobError(f"{index} is no safetensors index ({error}); download the model anew") from None
        return {str(key): str(file) for key, file in mapping.items()}
    if (folder / SINGLE).is_file():
        with _opened(folder / SINGLE) as file:
            return dict.fromkeys(file.keys(), SINGLE)
    raise JobError(f"base_model '{folder}' has neither {INDEX} nor {SINGLE}; only safetensors weights are read")


def missing_files(folder: Path) -> tuple[str, ...]:
    """Weight files that a model folder should have and has not, sorted. Raises JobError as `weight_files`."""
    return tuple(sorted(name for name in set(weight_files(folder).values()) if not (folder / name).is_file()))


def has_all_weights(folder: Path) -> bool:
    """Whether all weight files of a model folder are there, as far as it says which."""
    try:
        return not missing_files(folder)
    except JobError:
        return False


def check_all_weights(folder: Path, *, mend: str = "download the model anew") -> None:
    """Raise JobError naming what is missing of a model folder's weight files."""
    missing = missing_files(folder)
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise JobError(f"base_model '{folder}' lacks {shown}, which {INDEX} names; {mend}")


def load_weights(
    module: nn.Module,
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    tied_head: bool,
    report: Callable[[int, int], None] | None = None,
) -> tuple[str, ...]:
    """Replace the module's parameters, named as in the checkpoint, by frozen ones; returns the files that were opened.

    Weight by weight from the file to the device, which makes the dtype, so that the host never holds more than one.
    With a tied head, a head that has no weight of its own gets the embedding's. `report` hears, before each file, how
    many are done with it and how many there are. Raises JobError for weights that are missing or do not fit.
    """
    files = weight_files(folder)
    # file -> key in the file -> names in the module (two where embedding and tied head lie on one stage)
    wanted: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, _ in module.named_parameters(remove_duplicate=False):
        key = EMBEDDING if name == HEAD and tied_head and HEAD not in files else name
        if key not in files:
            raise JobError(f"base_model '{folder}' has no weight '{key}'; it is not complete or of another family")
        wanted[files[key]][key].append(name)
    for number, (file_name, keys) in enumerate(wanted.items(), start=1):
        if Path(file_name).name != file_name:
            raise JobError(f"{folder / INDEX} names the file '{file_name}'; it must lie in the same folder")
        if report is not None:
            report(number, len(wanted))
        with _opened(folder / file_name, device=device) as file:
            for key, names in keys.items():
                tensor = _tensor(file, key, folder / file_name).to(device=device, dtype=dtype)
                for name in names:
                    replace_weight(module, name, tensor)
    return tuple(wanted)


def _tensor(file: safe_open, key: str, path: Path) -> torch.Tensor:
    try:
        tensor: torch.Tensor = file.get_tensor(key)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise JobError(f"{path} has no weight '{key}' ({error}); download the model anew") from None
    return tensor


def _opened(path: Path, *, device: torch.device | str = "cpu") -> safe_open:
    try:
        return safe_open(path, framework="pt", device=str(device))
    except (SafetensorError, OSError) as error:
        raise JobError(f"{path} cannot be read as safetensors ({error}); download the model anew") from None


def replace_weight(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put a frozen weight in place of the module's parameter `name`. Raises JobError where the shapes differ."""
    owner_name, _, attribute = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    expected = getattr(owner, attribute).shape
    if tensor.shape != expected:
        raise JobError(f"weight '{name}' has shape {tuple(tensor.shape)}; config.json asks for {tuple(expected)}")
    setattr(owner, attribute, nn.Parameter(tensor, requires_grad=False))
