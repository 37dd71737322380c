"""`loraplex merge`: a base model with an adapter folded in, as an ordinary Hugging Face folder, file by file."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..planner.errors import JobError
from .disk import settle, writing
from .model import read_config
from .peft_folder import PeftAdapter, read_peft_adapter
from .weights import INDEX, SINGLE, check_all_weights, weight_files

SHARD_BYTES = 5_000_000_000
"""Most of one file that is written, where the base's files are not smaller anyway; so much is in memory at a time."""
_WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What was written."""

    folder: Path
    base: Path
    adapter: Path
    num_linears: int
    """Changed by the adapter."""
    num_files: int
    num_bytes: int
    """Of all weights."""

    def summary(self) -> dict[str, object]:
        """For --json."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shard:
    # Weights of one file of the base that go into one file.
    source: str
    keys: tuple[str, ...]


def merge(
    base: Path,
    adapter: Path,
    *,
    output: Path,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[str, float], None] | None = None,
) -> Merged:
    """Write W + scaling * B A for every linear that the adapter changes and W for all else, in the base's dtypes.

    Computed in float32 (float64 where W is). `output` appears when all is written. Raises JobError where it exists
    already, and for a base and an adapter that do not fit together or that cannot be folded; DiskError where it has no
    room.
    """
    if output.exists():
        raise JobError(f"{output}: exists already; name a new folder, or delete it first")
    if getattr(read_config(base), "quantization_config", None):
        raise JobError(f"{base}: holds quantized weights, which cannot take an adapter in; give the unquantized model")
    check_all_weights(base)
    files = weight_files(base)
    found = read_peft_adapter(adapter)
    _check_fits(found, base, files)
    shards = tuple(_shards(base, files, shard_bytes=shard_bytes))
    unfinished = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        with writing(output, then="merge again"):
            num_bytes = _write(base, found, shards, unfinished, progress=progress)
            _copy_rest(base, unfinished)
            unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Merged(
        folder=output,
        base=base,
        adapter=adapter,
        num_linears=len(found.keys),
        num_files=len(shards),
        num_bytes=num_bytes,
    )


def folded(weight: Tensor, a: Tensor, b: Tensor, *, scaling: float) -> Tensor:
    """`weight [N, K]` + scaling * `b [N, r]` `a [r, K]`, in weight's dtype."""
    wide = torch.float64 if weight.dtype is torch.float64 else torch.float32
    return (weight.to(wide) + b.to(wide) @ a.to(wide) * scaling).to(weight.dtype)


def _check_fits(adapter: PeftAdapter, base: Path, files: Mapping[str, str]) -> None:
    for linear in adapter.keys:
        key = f"{linear}.weight"
        if key not in files:
            raise JobError(
                f"{adapter.folder}: changes {linear}, which {base} has no weight of; give its own base model"
            )
        with safe_open(base / files[key], framework="pt") as file:
            shape = tuple(file.get_slice(key).get_shape())
        if shape != adapter.shapes(linear):
            raise JobError(
                f"{adapter.folder}: {linear} is made for a weight of shape {adapter.shapes(linear)}, {base} has "
                f"{shape}; give the base model that it was trained on"
            )


def _shards(base: Path, files: Mapping[str, str], *, shard_bytes: int) -> Iterator[_Shard]:
    for source in dict.fromkeys(files.values()):
        keys: list[str] = []
        size = 0
        with safe_open(base / source, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (no mapping)
                own = _num_bytes(file, key)
                if keys and size + own > shard_bytes:
                    yield _Shard(source=source, keys=tuple(keys))
                    keys, size = [], 0
                keys.append(key)
                size += own
        yield _Shard(source=source, keys=tuple(keys))


def _num_bytes(file: safe_open, key: str) -> int:
    part = file.get_slice(key)  # type: ignore[no-untyped-call]
    count = 1
    for length in part.get_shape():
        count *= length
    return count * _BYTES.get(part.get_dtype(), 8)


_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "U8": 1, "I8": 1, "BOOL": 1}


def _write(
    base: Path,
    adapter: PeftAdapter,
    shards: tuple[_Shard, ...],
    folder: Path,
    *,
    progress: Callable[[str, float], None] | None,
) -> int:
    linears = {f"{linear}.weight": linear for linear in adapter.keys}
    places: dict[str, str] = {}
    num_bytes = 0
    for number, shard in enumerate(shards, start=1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        held: dict[str, Tensor] = {}
        with safe_open(base / shard.source, framework="pt") as file:
            for key in shard.keys:
                tensor = file.get_tensor(key)
                if key in linears:
                    a, b = adapter.matrices(linears[key])
                    tensor = folded(tensor, a, b, scaling=adapter.scaling(linears[key]))
                held[key] = tensor.contiguous()
        save_file(held, folder / name, metadata={"format": "pt"})
        settle(folder / name)
        num_bytes += sum(tensor.nbytes for tensor in held.values())
        places |= dict.fromkeys(held, name)
        if progress is not None:
            progress("writing weights", number / len(shards))
    if len(shards) > 1:
        index = {"metadata": {"total_size": num_bytes}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return num_bytes


def _copy_rest(base: Path, folder: Path) -> None:
    # Config, tokenizer, templates, licence: whatever is a file and no weights. A hub's cache holds links.
    for path in sorted(base.iterdir()):
        if path.is_file() and not path.name.endswith(_WEIGHT_ENDINGS):
            shutil.copyfile(path, folder / path.name)
