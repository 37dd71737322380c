"""The embedded tiny Llama, written as a Hugging Face folder: what the demo and the tests train on.

Its weights are random. It learns little, but everything about it is real: config, sharded safetensors, and the
byte-level tokenizer with its chat template.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from ..planner.inputs.base_model import TINY_CONFIG
from ..planner.inputs.tiny_tokenizer import tiny_tokenizer


def write_tiny_model(
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    changes: Mapping[str, object] | None = None,
    shard_bytes: int = 200_000,
) -> Path:
    """Write config, sharded weights and tokenizer into `folder`, which is returned; the same seed gives the same bytes.

    `changes` replaces entries of `TINY_CONFIG`, for example {"num_hidden_layers": 2} or {"model_type": "qwen3"}.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {**TINY_CONFIG, **(changes or {})}
    # Set below; some versions of transformers take nothing but a list here.
    del settings["architectures"]
    # Wider than the usual 0.02: with so few dimensions, random features would otherwise carry almost no signal.
    settings.setdefault("initializer_range", settings["hidden_size"] ** -0.5)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    config.architectures = [type(model).__name__]
    weights = model.state_dict()
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]
    tiny_tokenizer().save_pretrained(path)
    write_shards(weights, path, shard_bytes=shard_bytes)
    config.save_pretrained(path)
    return path


def write_shards(weights: Mapping[str, Tensor], folder: Path, *, shard_bytes: int) -> None:
    """Write weights as Hugging Face shards of about `shard_bytes`, with the index when there are several."""
    from huggingface_hub import split_torch_state_dict_into_shards

    split = split_torch_state_dict_into_shards(dict(weights), max_shard_size=shard_bytes)
    for file, keys in split.filename_to_tensors.items():
        save_file({key: weights[key].contiguous() for key in keys}, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
