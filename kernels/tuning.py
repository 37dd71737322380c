"""Which block sizes a call runs with: tuned here by `tune`, else shipped for this GPU, else what any GPU can run."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton

from .layout import DEFAULT_CONFIG, GemmConfig, KernelConfig, PassConfig

FORMAT = 2
SHIPPED = Path(__file__).parent / "tuned"

HOPPER_CONFIG = replace(
    DEFAULT_CONFIG,
    gradient=PassConfig(rows=32, columns=128, num_warps=4, num_stages=3),
    gemm=GemmConfig(rows=128, columns=256, depth=64, bands=8, num_warps=8, num_stages=3),
    beside=True,
)
"""192 KiB of shared memory for the product and 24 for a gradient's pass beside it: H100, H200 and their kin.

No early start: in training Llama-3.1-8B it costs 4 % of the tokens a second on an H100 (2026-11-25) and 0.7 % on an
H200 (2026-11-26), though a lone linear in a graph gains 1 %.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """A configuration and the calls it was chosen on; it serves calls of at most these rows and ranks."""

    dtype: str
    max_rows: int
    max_lora_rank: int
    dropout: bool
    config: KernelConfig


@functools.lru_cache(maxsize=1024)
def choose_config(
    device: torch.device, dtype: torch.dtype, *, num_rows: int, lora_rank: int, dropout: bool
) -> KernelConfig:
    """The configuration for this GPU, dtype and bucket of shapes; never an error because the GPU is unknown."""
    if device.type != "cuda":
        return DEFAULT_CONFIG
    entries = [entry for entry in _entries(device) if entry.dtype == str(dtype) and entry.dropout == dropout]
    if not entries:
        return fallback_config(device)
    fitting = [entry for entry in entries if num_rows <= entry.max_rows and lora_rank <= entry.max_lora_rank]
    # beyond the largest bucket the largest serves; an r above every bucket takes the widest one
    widest = max(entries, key=lambda entry: (entry.max_lora_rank, entry.max_rows))
    most_rows = [entry for entry in entries if lora_rank <= entry.max_lora_rank]
    if fitting:
        return min(fitting, key=lambda entry: (entry.max_lora_rank, entry.max_rows)).config
    if most_rows:
        return min(most_rows, key=lambda entry: (entry.max_lora_rank, -entry.max_rows)).config
    return widest.config


def fallback_config(device: torch.device) -> KernelConfig:
    """Without tuned data: by what the GPU can do."""
    capability = torch.cuda.get_device_capability(device)
    return HOPPER_CONFIG if capability[0] == 9 else DEFAULT_CONFIG


def cache_file(gpu: str) -> Path:
    """Where `tune` keeps what it found for this GPU."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "loraplex" / "kernels" / f"{slug(gpu)}.json"


def slug(gpu: str) -> str:
    return "-".join(gpu.lower().split())


def versions() -> dict[str, str]:
    """What a tuned file was made with; a cached file of other versions is not used."""
    return {"torch": str(torch.__version__), "triton": str(triton.__version__)}


def tuned_document(gpu: str, date: str, entries: list[Tuned]) -> dict[str, Any]:
    """The GPU, the versions, the date, and a configuration per bucket."""
    return {
        "format": FORMAT, "gpu": gpu, "date": date, "versions": versions(),
        "entries": [dataclasses.asdict(entry) for entry in entries],
    }  # fmt: skip


def write_tuned(path: Path, document: dict[str, Any]) -> None:
    """A `tuned_document` as readable JSON, whole or not at all: a run may read it while it is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_tuned(path: Path, *, same_versions: bool) -> tuple[Tuned, ...]:
    """The entries of a file; none where it is missing, of another format or, if asked, of other versions."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT or (same_versions and document["versions"] != versions()):
            return ()
        return tuple(_entry(entry) for entry in document["entries"])
    except (OSError, ValueError, KeyError, TypeError):
        # a cache is never worth a failed training run: a damaged one is as good as none
        return ()


@functools.lru_cache(maxsize=16)
def _entries(device: torch.device) -> tuple[Tuned, ...]:
    gpu = torch.cuda.get_device_name(device)
    return read_tuned(cache_file(gpu), same_versions=True) or read_tuned(
        SHIPPED / f"{slug(gpu)}.json", same_versions=False
    )


def _entry(entry: dict[str, Any]) -> Tuned:
    config = dict(entry["config"])
    for name in ("shrink", "expand", "gradient"):
        config[name] = PassConfig(**config[name])
    if config["gemm"] is not None:
        config["gemm"] = GemmConfig(**config["gemm"])
    return Tuned(**{**entry, "config": KernelConfig(**config)})
