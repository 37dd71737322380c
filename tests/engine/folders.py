"""Model folders and PEFT adapters for tests, of every family and nowhere zero or one."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from loraplex.engine.tiny_model import write_shards, write_tiny_model

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 40, "pad_token_id": 0}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "qwen2": {},
    "qwen2 tied": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": True, "head_dim": 16},
    "mistral": {"sliding_window": 9, "head_dim": 8},
}


def write_all_random(
    folder: Path, family: str, *, dtype: torch.dtype = torch.bfloat16, changes: dict[str, Any] | None = None
) -> Path:
    """A small sharded model whose biases and norms are no zeros and ones, in bfloat16 as most are."""
    settings = {**SMALL, "model_type": family.split()[0], **FAMILIES[family], "dtype": dtype, **(changes or {})}
    write_tiny_model(folder, changes=settings)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    generator = torch.Generator().manual_seed(3)
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config).state_dict()  # type: ignore[no-untyped-call]
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    weights = {name: torch.randn(like.shape, generator=generator).to(dtype) for name, like in shapes.items()}
    write_shards(weights, folder, shard_bytes=8_000)
    return folder


def write_peft_adapter(base: Path, folder: Path, settings: dict[str, Any]) -> Path:
    """An adapter made and saved by peft itself, with matrices that are not zero."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) / 10
    model.save_pretrained(str(folder))
    return folder
