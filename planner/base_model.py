"""What planning must know of a base model: its folder, its layers and the names of its linears. Never its weights."""

from types import MappingProxyType
from typing import Final

TINY: Final = "tiny"
"""The `base_model` that names the embedded model."""

TINY_CONFIG: Final = MappingProxyType(
    {
        "model_type": "llama",
        "architectures": ("LlamaForCausalLM",),
        "vocab_size": 262,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "pad_token_id": 256,
        "bos_token_id": 257,
        "eos_token_id": 258,
        "tie_word_embeddings": False,
    }
)
"""config.json of the embedded model. The engine builds it with random weights; planning only counts its layers."""
