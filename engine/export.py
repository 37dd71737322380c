"""Adapters as PEFT folders of adapter_model.safetensors and adapter_config.json, each there whole or not at all."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from ..planner.jobs import Job
from .adapters import StageAdapter
from .disk import settle
from .output import ADAPTERS
from .targets import short_targets

_PREFIX = "base_model.model."


def save_part(adapters: Sequence[StageAdapter], path: Path) -> None:
    """Write one stage's share of every adapter, to be joined by `export_adapters`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{index}/{name}": parameter.detach().contiguous()
        for index, adapter in enumerate(adapters)
        for name, parameter in adapter.parameters.items()
    }
    save_file(tensors, path)


def export_adapters(
    jobs: Sequence[Job], parts: Sequence[Path], folder: Path, *, base_model: str, linears: Sequence[str]
) -> tuple[Path, ...]:
    """Join the stages' parts into one PEFT folder per adapter below `folder / ADAPTERS`; returns them.

    `linears` are the names of all linears of the whole model, `base_model` what adapter_config.json refers to.
    """
    tensors: dict[str, Tensor] = {}
    for part in parts:
        tensors |= load_file(part)
    made = []
    for index, job in enumerate(jobs):
        own = {key.partition("/")[2]: tensor for key, tensor in tensors.items() if key.startswith(f"{index}/")}
        targets = short_targets(linears, job.lora.target_modules)
        path = folder / ADAPTERS / job.name
        save_adapter(job, own, path, base_model=base_model, target_modules=targets)
        made.append(path)
    return tuple(made)


def save_adapter(
    job: Job, tensors: Mapping[str, Tensor], path: Path, *, base_model: str, target_modules: Sequence[str]
) -> None:
    """Write one PEFT folder. `tensors` are keyed by the names in the whole model, `...q_proj.lora_A.weight`."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        save_file(
            {_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            unfinished / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        settle(unfinished / "adapter_model.safetensors")
        config = adapter_config(job, base_model=base_model, target_modules=target_modules)
        (unfinished / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        _put_in_place(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def adapter_config(job: Job, *, base_model: str, target_modules: Sequence[str]) -> dict[str, object]:
    """What PEFT's LoraConfig and vLLM read, with the true r and the targets by name."""
    alpha = job.lora.lora_alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": job.lora.r,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": job.lora.lora_dropout,
        "use_rslora": job.lora.use_rslora,
        "target_modules": list(target_modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": False,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def _put_in_place(unfinished: Path, path: Path) -> None:
    # A folder cannot be renamed over another one: move an older one aside first.
    older = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        path.rename(older)
    unfinished.rename(path)
    shutil.rmtree(older, ignore_errors=True)
