"""One decoder layer of the Llama family, in fused pieces: what transformers' layer computes, in fewer passes.

The layer's modules come from transformers and hold the weights under their usual names; only the forward is ours. The
residual sum is carried from layer to layer in two parts, so that each norm adds them in passing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

from ..kernels.rms_norm import add_rms_norm, rms_norm
from ..kernels.rope import split_and_rotate
from ..kernels.routing import Routing
from ..kernels.swiglu import swiglu
from ..traces.costs import RecomputeMode
from .attention import packed_attention
from .batch import PackedRows
from .linear_group import LinearGroup
from .recompute import remade


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerContext:
    """What every layer of a stage needs to know of the microbatch at hand."""

    rows: PackedRows
    routing: Routing | None
    """None where no adapter takes part."""
    cos: Tensor
    """`[T, D]`: rotary embeddings of each row's position."""
    sin: Tensor
    recompute: RecomputeMode = "none"


class DecoderBlock:
    """The forward of one layer."""

    def __init__(self, layer: nn.Module, config: PretrainedConfig, *, name: str) -> None:
        attention: Any = layer.self_attn
        self.num_heads: int = config.num_attention_heads
        self.num_kv_heads: int = config.num_key_value_heads
        self.head_dim: int = attention.head_dim
        self.scaling: float = attention.scaling
        # Mistral says it for the whole model, Qwen for each layer, Llama not at all.
        self.window: int | None = getattr(attention, "sliding_window", getattr(config, "sliding_window", None))
        self.input_norm: Any = layer.input_layernorm
        self.mlp_norm: Any = layer.post_attention_layernorm
        self.q_norm: Any = getattr(attention, "q_norm", None)
        self.k_norm: Any = getattr(attention, "k_norm", None)
        self.qkv = _group(layer, name, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        self.out = _group(layer, name, "self_attn.o_proj")
        self.gate_up = _group(layer, name, "mlp.gate_proj", "mlp.up_proj")
        self.down = _group(layer, name, "mlp.down_proj")

    def groups(self) -> Iterator[LinearGroup]:
        """Its linears, in the order in which they run."""
        yield from (self.qkv, self.out, self.gate_up, self.down)

    def __call__(self, residual: Tensor, update: Tensor | None, context: LayerContext) -> tuple[Tensor, Tensor]:
        """The residual sum before this layer, in two parts `[T, H]` -> the same behind it."""
        if context.recompute == "full" and torch.is_grad_enabled():
            # One tensor is kept for each layer, so the parts are added first.
            whole = residual if update is None else residual + update
            remade_later: tuple[Tensor, Tensor] = checkpoint(
                self._run, whole, None, context, use_reentrant=False, preserve_rng_state=False
            )
            return remade_later
        return self._run(residual, update, context)

    def _run(self, residual: Tensor, update: Tensor | None, context: LayerContext) -> tuple[Tensor, Tensor]:
        residual, normed = _norm(self.input_norm, residual, update)
        with _remade_norm(self.input_norm, residual, normed, context):
            qkv = self.qkv(normed, context.routing)
        attended = self._attend(qkv, context)
        residual, normed = _norm(self.mlp_norm, residual, self.out(attended, context.routing))
        with _remade_norm(self.mlp_norm, residual, normed, context):
            gate_up = self.gate_up(normed, context.routing)
        if context.recompute == "selective":
            return residual, self.down.of_gated(gate_up, context.routing)
        return residual, self.down(swiglu(gate_up), context.routing)

    def _attend(self, qkv: Tensor, context: LayerContext) -> Tensor:
        query, key, value = split_and_rotate(
            self._normed_heads(qkv),
            context.cos,
            context.sin,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
        )
        attended = packed_attention(query, key, value, rows=context.rows, scaling=self.scaling, window=self.window)
        return attended.reshape(qkv.shape[0], -1)

    def _normed_heads(self, qkv: Tensor) -> Tensor:
        # Qwen3 alone norms queries and keys, head by head.
        if self.q_norm is None:
            return qkv
        heads = qkv.view(qkv.shape[0], -1, self.head_dim)
        query, key, value = torch.split(heads, [self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        query = rms_norm(query, self.q_norm.weight, eps=self.q_norm.variance_epsilon)
        key = rms_norm(key, self.k_norm.weight, eps=self.k_norm.variance_epsilon)
        return torch.cat([query, key, value], dim=1).view(qkv.shape)


def _group(layer: nn.Module, layer_name: str, *names: str) -> LinearGroup:
    linears: list[Any] = [layer.get_submodule(name) for name in names]
    return LinearGroup([f"{layer_name}.{name}" for name in names], linears)


def _norm(norm: Any, residual: Tensor, update: Tensor | None) -> tuple[Tensor, Tensor]:
    # (the whole residual sum, its norm)
    if update is None:
        return residual, rms_norm(residual, norm.weight, eps=norm.variance_epsilon)
    normed, summed = add_rms_norm(update, residual, norm.weight, eps=norm.variance_epsilon)
    return summed, normed


def _remade_norm(norm: Any, residual: Tensor, normed: Tensor, context: LayerContext) -> Any:
    kept = residual.detach()
    return remade(
        normed,
        lambda: rms_norm(kept, norm.weight, eps=norm.variance_epsilon),
        enabled=context.recompute == "selective",
    )
