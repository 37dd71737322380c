"""Read a stage's weights from safetensors shards; files that hold none of them are never opened."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..kernels.nf4 import Nf4Weight
from ..kernels.nf4_stored import NESTED_PARTS, PARTS, nf4_from_stored
from ..planner.errors import JobError
from .place_weight import Nf4Settings, place_nf4, place_weight

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def check_quantization(folder: Path, settings: Any) -> None:
    """Raise JobError for a `quantization_config` (None, or as in config.json) of weights that we cannot read."""
    if settings is None:
        return
    given = dict(settings) if isinstance(settings, Mapping) else dict(vars(settings))
    method, kind = str(given.get("quant_method")), str(given.get("bnb_4bit_quant_type"))
    if "bitsandbytes" not in method.lower() or kind != "nf4":
        found = f"{method} {kind}" if "bnb_4bit_quant_type" in given else method
        raise JobError(
            f"base_model '{folder}' holds quantized weights; give the unquantized model, or one that bitsandbytes "
            f"quantized as nf4 (this one is quantized by {found})"
        )


def weight_files(folder: Path) -> dict[str, str]:
    """File name of every weight of a model folder. Raises JobError where there are no safetensors files."""
    index = folder / INDEX
    if index.is_file():
        try:
            mapping = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = {str(key): str(file) for key, file in mapping.items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            # Whatever stands there in place of names and files.
            why = f"{type(error).__name__}: {error}"
            raise JobError(f"{index} is no safetensors index ({why}); download the model anew") from None
        outside = [file for file in files.values() if Path(file).name != file]
        if outside:
            raise JobError(f"{index} names the file '{outside[0]}'; it must lie in the same folder")
        return files
    if (folder / SINGLE).is_file():
        with open_weights(folder / SINGLE) as file:
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
    nf4: Nf4Settings | None = None,
    report: Callable[[int, int], None] | None = None,
) -> tuple[str, ...]:
    """Replace the module's parameters, named as in the checkpoint, by frozen ones; returns the files that were opened.

    Weight by weight from the file to the device, which makes the dtype or the 4 bits, so that the host never holds more
    than one. Weights that are stored in 4 bits stay so. With a tied head, a head that has no weight of its own gets the
    embedding's. `report` hears, before each file, how many are done with it and how many there are. Raises JobError for
    weights that are missing or do not fit.
    """
    files = weight_files(folder)
    wanted = _wanted(module, files, folder, tied_head=tied_head)
    opened: dict[str, None] = {}
    for number, (file_name, keys) in enumerate(wanted.items(), start=1):
        if report is not None:
            report(number, len(wanted))
        opened[file_name] = None
        with open_weights(folder / file_name, device=device) as file:
            for key, names in keys.items():
                tensor = _tensor(file, key, folder / file_name).to(device)
                if f"{key}.absmax" in files:
                    parts = _stored_parts(key, files, folder, device=device)
                    opened |= dict.fromkeys(files[f"{key}.{word}"] for word in parts)
                    place_nf4(module, key, _stored(key, tensor, parts, folder, dtype=dtype))
                    continue
                for name in names:
                    place_weight(module, name, tensor, dtype=dtype, nf4=nf4)
    return tuple(opened)


def _wanted(
    module: nn.Module, files: Mapping[str, str], folder: Path, *, tied_head: bool
) -> dict[str, dict[str, list[str]]]:
    # file -> key in the file -> names in the module (two where embedding and tied head lie on one stage)
    wanted: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, _ in module.named_parameters(remove_duplicate=False):
        key = stored_name(name, files, folder, tied_head=tied_head)
        wanted[files[key]][key].append(name)
    return wanted


def stored_name(name: str, files: Mapping[str, str], folder: Path, *, tied_head: bool) -> str:
    """What a parameter is called in the files: a tied head may lie there as the embedding alone.

    Raises JobError where they do not have it.
    """
    key = EMBEDDING if name == HEAD and tied_head and HEAD not in files else name
    if key not in files:
        raise JobError(f"base_model '{folder}' has no weight '{key}'; it is not complete or of another family")
    return key


def _stored_parts(
    key: str, files: Mapping[str, str], folder: Path, *, device: torch.device | str
) -> dict[str, torch.Tensor]:
    # What belongs to one weight may lie in two files, where the first was full.
    found = {}
    for word in (*PARTS, *NESTED_PARTS):
        part = f"{key}.{word}"
        if part in files:
            with open_weights(folder / files[part], device=device) as file:
                found[word] = _tensor(file, part, folder / files[part]).to(device)
    return found


def _stored(
    key: str, packed: torch.Tensor, parts: Mapping[str, torch.Tensor], folder: Path, *, dtype: torch.dtype
) -> Nf4Weight:
    try:
        return nf4_from_stored(packed, parts, dtype=dtype)
    except (ValueError, KeyError) as error:
        raise JobError(f"base_model '{folder}', weight '{key}': {error}; download the model anew") from None


def _tensor(file: safe_open, key: str, path: Path) -> torch.Tensor:
    try:
        tensor: torch.Tensor = file.get_tensor(key)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise JobError(f"{path} has no weight '{key}' ({error}); download the model anew") from None
    return tensor


def open_weights(path: Path, *, device: torch.device | str = "cpu") -> safe_open:
    """A file of weights. Raises JobError where it cannot be read."""
    try:
        return safe_open(path, framework="pt", device=str(device))
    except (SafetensorError, OSError) as error:
        raise JobError(f"{path} cannot be read as safetensors ({error}); download the model anew") from None
