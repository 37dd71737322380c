"""Read a stage's weights from safetensors shards; files that hold none of them are never opened."""

import json
from collections import defaultdict
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


def load_weights(
    module: nn.Module, folder: Path, *, dtype: torch.dtype, device: torch.device | str, tied_head: bool
) -> tuple[str, ...]:
    """Replace the module's parameters, named as in the checkpoint, by frozen ones; returns the files that were opened.

    With a tied head, a head that has no weight of its own gets the embedding's.
    """
    files = weight_files(folder)
    # file -> key in the file -> names in the module (two where embedding and tied head lie on one stage)
    wanted: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, _ in module.named_parameters(remove_duplicate=False):
        key = EMBEDDING if name == HEAD and tied_head and HEAD not in files else name
        if key not in files:
            raise JobError(f"base_model '{folder}' has no weight '{key}'; it is not complete or of another family")
        wanted[files[key]][key].append(name)
    for file_name, keys in wanted.items():
        if Path(file_name).name != file_name:
            raise JobError(f"{folder / INDEX} names the file '{file_name}'; it must lie in the same folder")
        with _opened(folder / file_name) as file:
            for key, names in keys.items():
                tensor = file.get_tensor(key).to(device=device, dtype=dtype)
                for name in names:
                    replace_weight(module, name, tensor)
    return tuple(wanted)


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
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
