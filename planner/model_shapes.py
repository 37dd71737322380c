"""ModelShapes: the sizes of a base model that memory follows from, read from its config.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import JobError
from .inputs.base_model import ALL_LINEAR, BaseModel

NF4_BLOCK = 64
"""Weights that share one float32 scale."""
_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShapes:
    """Sizes of a decoder of the Llama family, in elements unless said otherwise."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary: int
    tied_head: bool = False
    """Whether the head's weight is the embedding's."""
    bias_elements: int = 0
    """Of the linears of one layer together."""
    head_norms: bool = False
    """Whether queries and keys are normed head by head, as in Qwen3."""
    dtype_bytes: int = 2

    @classmethod
    def of(cls, model: BaseModel) -> "ModelShapes":
        """From config.json, whose type is the one that runs. Raises JobError for a number that is not there."""
        config = model.config
        heads = _number(config, "num_attention_heads", model.name)
        hidden = _number(config, "hidden_size", model.name)
        kv_heads = int(config.get("num_key_value_heads") or heads)
        head_dim = int(config.get("head_dim") or hidden // heads)
        qkv_bias = bool(config.get("attention_bias")) or model.family == "qwen2"
        named = config.get("dtype") or config.get("torch_dtype") or "float32"
        return cls(
            num_layers=model.num_layers,
            hidden_size=hidden,
            intermediate_size=_number(config, "intermediate_size", model.name),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            vocabulary=_number(config, "vocab_size", model.name),
            tied_head=bool(config.get("tie_word_embeddings", False)),
            bias_elements=(heads + 2 * kv_heads) * head_dim if qkv_bias else 0,
            head_norms=model.family == "qwen3",
            dtype_bytes=_DTYPE_BYTES.get(str(named), 4),
        )

    def query_size(self) -> int:
        """Features of all query heads."""
        return self.num_heads * self.head_dim

    def kv_size(self) -> int:
        """Features of all key heads, and of all value heads."""
        return self.num_kv_heads * self.head_dim

    def linears(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of the linears of one layer, by short name."""
        hidden, query, kv, inner = self.hidden_size, self.query_size(), self.kv_size(), self.intermediate_size
        return {
            "q_proj": (query, hidden),
            "k_proj": (kv, hidden),
            "v_proj": (kv, hidden),
            "o_proj": (hidden, query),
            "gate_proj": (inner, hidden),
            "up_proj": (inner, hidden),
            "down_proj": (hidden, inner),
        }

    def lora_parameters(self, target_modules: Sequence[str], *, r: int) -> int:
        """Parameters of one adapter in one layer."""
        wanted = [name.rpartition(".")[2] for name in target_modules]
        chosen = self.linears() if ALL_LINEAR in target_modules else wanted
        return sum(r * sum(size) for name, size in self.linears().items() if name in chosen)

    def layer_weight_bytes(self, *, load_in_4bit: bool = False) -> float:
        """Frozen weights of one layer. In 4 bits a linear's weight takes half a byte, and a scale for each block."""
        linear = sum(outputs * inputs for outputs, inputs in self.linears().values())
        rest = 2 * self.hidden_size + self.bias_elements + (2 * self.head_dim if self.head_norms else 0)
        per_weight = 0.5 + 4 / NF4_BLOCK if load_in_4bit else self.dtype_bytes
        return linear * per_weight + rest * self.dtype_bytes

    def end_weight_bytes(self, *, num_stages: int) -> tuple[float, float]:
        """Frozen weights of the embedding, and of the head with the last norm. A single stage holds a tied weight once,
        more of them hold it at both ends."""
        table = self.vocabulary * self.hidden_size
        head = self.hidden_size + (0 if self.tied_head and num_stages == 1 else table)
        return table * self.dtype_bytes, head * self.dtype_bytes


def _number(config: Mapping[str, Any], name: str, model: str) -> int:
    found = config.get(name)
    if not isinstance(found, int) or found < 1:
        raise JobError(f"the config.json of {model!r} has {name}={found!r}; a positive whole number is needed")
    return found
