"""Parts of one layer by themselves: attention, and the linears frozen or with LoRA in plain PyTorch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import dropout, linear

from ..planner.jobs import LoraSettings
from .attention import packed_attention
from .batch import PackedBatch
from .linear_group import LinearGroup
from .model import StageModel
from .recorder import Recorder

Call = Callable[[], list[Tensor]]
"""A forward; what it returns gets gradients."""


def time_pass(recorder: Recorder, call: Call) -> None:
    """Record a forward and, with gradients of ones, its backward: two spans of compute, one behind the other."""
    start = recorder.mark()
    outputs = call()
    recorder.add("compute", "forward", microbatch=0, start=start, end=recorder.mark())
    gradients = [torch.ones_like(output) for output in outputs]
    start = recorder.mark()
    torch.autograd.backward(outputs, gradients)
    recorder.add("compute", "backward", microbatch=0, start=start, end=recorder.mark())


def frozen_stage(model: StageModel, packed: PackedBatch) -> Call:
    """All layers without any adapter."""
    hidden = _random((1, packed.routing.num_rows, model.config.hidden_size), model)
    return lambda: [model(_leaf(hidden), rows=packed.rows)]


def attention(model: StageModel, packed: PackedBatch) -> Call:
    """Attention of one layer over the samples of a microbatch."""
    block, num_rows = model.blocks()[0], packed.routing.num_rows
    query = _random((num_rows, block.num_heads, block.head_dim), model)
    key, value = (_random((num_rows, block.num_kv_heads, block.head_dim), model) for _ in range(2))
    return lambda: [
        packed_attention(
            _leaf(query), _leaf(key), _leaf(value), rows=packed.rows, scaling=block.scaling, window=block.window
        )
    ]


def frozen_linears(model: StageModel, packed: PackedBatch) -> Call:
    """The linears of one layer without any adapter, each group on an input of its own."""
    groups, inputs = _groups(model, packed)
    return lambda: [
        linear(leaf, base.weight, base.bias)
        for group, leaf in zip(groups, map(_leaf, inputs), strict=True)
        for base in group.linears
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class EagerLora:
    """LoRA matrices of one layer as PEFT holds them: `pairs[group][linear][adapter]`, in the model's type."""

    pairs: tuple[tuple[tuple[tuple[Tensor, Tensor], ...], ...], ...]
    loras: tuple[LoraSettings, ...]

    @classmethod
    def of(cls, model: StageModel, loras: Sequence[LoraSettings]) -> "EagerLora":
        """Random matrices for every linear of the first layer, whatever the adapters target."""
        pairs = tuple(
            tuple(
                tuple(
                    (_random((lora.r, one.in_features), model), _random((one.out_features, lora.r), model))
                    for lora in loras
                )
                for one in group.linears
            )
            for group in model.blocks()[0].groups()
        )
        return cls(pairs=pairs, loras=tuple(loras))


def eager_linears(model: StageModel, packed: PackedBatch, adapters: EagerLora) -> Call:
    """The linears of one layer with every adapter's LoRA in the arithmetic of PEFT, adapter after adapter."""
    groups, inputs = _groups(model, packed)

    def one(x: Tensor, base: torch.nn.Linear, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        y = linear(x, base.weight, base.bias)
        parts = []
        for segment in packed.routing.segments:
            lora, (a, b) = adapters.loras[segment.adapter], pairs[segment.adapter]
            own = slice(segment.first_row, segment.end_row)
            branch = linear(linear(dropout(x[own], lora.lora_dropout), a), b)
            parts.append(y[own] + branch * lora.scaling())
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return lambda: [
        one(leaf, base, adapters.pairs[place][number])
        for place, (group, leaf) in enumerate(zip(groups, map(_leaf, inputs), strict=True))
        for number, base in enumerate(group.linears)
    ]


def _groups(model: StageModel, packed: PackedBatch) -> tuple[tuple[LinearGroup, ...], list[Tensor]]:
    groups = tuple(model.blocks()[0].groups())
    return groups, [_random((packed.routing.num_rows, group.linears[0].in_features), model) for group in groups]


def _leaf(x: Tensor) -> Tensor:
    # Anew for each call, so that gradients are made and not added up.
    return x.detach().requires_grad_()


def _random(shape: tuple[int, ...], model: StageModel) -> Tensor:
    weight = next(model.parameters())
    return (0.02 * torch.randn(shape, dtype=weight.dtype, device=weight.device)).requires_grad_()
