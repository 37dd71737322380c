"""Run the LoRA linears of a PEFT model through the fused kernels, and put everything back.

Only the `forward` of each linear is replaced, on the instance: parameters, names, saving, merging and `disable_adapter`
stay PEFT's. What a call asks that the kernels cannot do (DoRA, several active adapters on the same rows, a merged or
disabled adapter) goes to PEFT's own `forward`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .checks import MAX_LORA_RANK
from .multi_lora import multi_lora_linear
from .nf4 import Nf4Weight
from .routing import Routing, Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchSummary:
    """What `patch_peft` did."""

    fused: tuple[str, ...]
    """Names of the linears that now run fused."""
    left: dict[str, str]
    """Name of each LoRA layer left on PEFT's own path, and why; "LAYER, adapter NAME" of one adapter of a fused one."""


@dataclass(slots=True, kw_only=True)
class _State:
    """What the patched layers of one model share."""

    seed: int
    step: int = 0
    """Forward passes of the whole model so far; recomputation inside a backward pass is none, so masks repeat there."""
    routings: dict[Any, Routing] = field(default_factory=dict)
    routed: tuple[Routing, tuple[str, ...]] | None = None
    hook: Any = None
    layers: list[nn.Module] = field(default_factory=list)


def patch_peft(model: nn.Module, *, seed: int = 0) -> PatchSummary:
    """Replace the forward of every LoRA linear that the kernels can run; `unpatch_peft` undoes it.

    Dropout's masks come from (`seed`, the model's forward pass, the layer, the row), not from torch's generator. Under
    autocast, and where input and base weight differ in dtype, a call goes PEFT's own way: load the base in the compute
    dtype. So does one whose base weight wants a gradient, which the kernels never make.
    Raises `ValueError` on a model without LoRA layers or already patched.
    """
    from peft.tuners.lora.layer import LoraLayer

    if getattr(model, "_loraplex_state", None) is not None:
        raise ValueError("model is patched already: call unpatch_peft(model) first")
    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    if not layers:
        raise ValueError(f"model is a {type(model).__name__} without LoRA layers: give what get_peft_model returned")
    state = _State(seed=seed)
    left: dict[str, str] = {}
    fused: list[str] = []
    for target, (name, layer) in enumerate(layers.items()):
        reason = _why_not(layer)
        if reason is not None:
            left[name] = reason
            continue
        left |= {
            f"{name}, adapter {adapter}": f"it {why}"
            for adapter in layer.lora_A
            if (why := _why_not_adapter(layer, adapter)) is not None
        }
        layer.forward = _fused_forward(layer, layer.forward, state, target)
        state.layers.append(layer)
        fused.append(name)

    def next_pass(_module: nn.Module, _args: Any) -> None:
        state.step += 1
        state.routings.clear()

    state.hook = model.register_forward_pre_hook(next_pass)
    model._loraplex_state = state  # type: ignore[assignment]  # a plain attribute, no parameter or module
    return PatchSummary(fused=tuple(fused), left=left)


def unpatch_peft(model: nn.Module) -> None:
    """Give every layer its own forward back."""
    state = _state_of(model)
    for layer in state.layers:
        del layer.forward
    state.hook.remove()
    del model._loraplex_state


@contextlib.contextmanager
def route(model: nn.Module, routing: Routing, adapter_names: tuple[str, ...]) -> Iterator[None]:
    """Inside, rows go to adapters as `routing` says: its adapter i is PEFT's adapter `adapter_names[i]`.

    For packed rows of several adapters in one pass; each layer's own scaling replaces the routing's.
    """
    state = _state_of(model)
    if len(adapter_names) != routing.num_adapters:
        raise ValueError(
            f"adapter_names has {len(adapter_names)} names, but routing has {routing.num_adapters} adapters: name each"
        )
    state.routed = (routing, adapter_names)
    state.routings.clear()
    try:
        yield
    finally:
        state.routed = None
        state.routings.clear()


def _state_of(model: nn.Module) -> _State:
    state = getattr(model, "_loraplex_state", None)
    if not isinstance(state, _State):
        raise ValueError(f"model is a {type(model).__name__} that is not patched: call patch_peft(model) first")
    return state


def _why_not(layer: Any) -> str | None:
    """Why this layer stays with PEFT, or None."""
    base = layer.get_base_layer()
    if isinstance(base, nn.Embedding):
        return "an embedding"
    weight: Any = getattr(base, "weight", None)
    if _is_nf4(weight):
        k, block_size = weight.quant_state.shape[1], weight.quant_state.blocksize
        return f"its NF4 blocks of {block_size} lie across rows of {k}" if k % block_size else None
    if type(base) is not nn.Linear:
        return f"its base is a {type(base).__name__}"
    if layer.fan_in_fan_out:
        return "its weight is stored transposed (fan_in_fan_out)"
    if weight is not None and weight.requires_grad:
        return "its base weight is trained"
    reasons = [_why_not_adapter(layer, name) for name in layer.lora_A]
    known = sorted({reason for reason in reasons if reason is not None})
    return f"every adapter {' or '.join(known)}" if reasons and None not in reasons else None


def _why_not_adapter(layer: Any, name: str) -> str | None:
    """Why PEFT's own path takes this adapter of a layer, or None."""
    if name in layer.lora_variant:
        return f"is a variant: {type(layer.lora_variant[name]).__name__}"
    if layer.lora_bias[name]:
        return "has a bias of its own (lora_bias)"
    if layer.r[name] > MAX_LORA_RANK:
        return f"has r = {layer.r[name]}, above {MAX_LORA_RANK}"
    return None


def _is_nf4(weight: Any) -> bool:
    return getattr(getattr(weight, "quant_state", None), "quant_type", None) == "nf4"


def _fused_forward(layer: Any, original: Callable[..., Tensor], state: _State, target: int) -> Callable[..., Tensor]:
    """The layer's new forward; keyword arguments are PEFT's own and mean its own path."""

    unpacked: dict[int, Nf4Weight] = {}

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        names = _adapters_now(layer, state)
        base = layer.get_base_layer()
        weight = _weight_of(base, unpacked)
        # One that has been set free since it was patched is trained, and that only PEFT's path does.
        trained = base.weight.requires_grad
        if (
            args
            or kwargs
            or not names
            or trained
            or weight.dtype != x.dtype
            or torch.is_autocast_enabled(x.device.type)
        ):
            return original(x, *args, **kwargs)
        routing = _routing(layer, state, names, x)
        pairs = [_matrices(layer, name) for name in names]
        return multi_lora_linear(
            x, weight, base.bias, [a for a, _ in pairs], [b for _, b in pairs],
            routing=routing, target=target,
        )  # fmt: skip

    return forward


def _adapters_now(layer: Any, state: _State) -> tuple[str, ...]:
    """The adapters that this call runs fused; none where PEFT's own path must take it."""
    if layer.disable_adapters or layer.merged:
        return ()
    if state.routed is not None:
        names = state.routed[1]
    else:
        names = tuple(name for name in layer.active_adapters if name in layer.lora_A)
        if len(names) != 1:
            return ()
    own = [name for name in names if name in layer.lora_A]
    return names if all(_why_not_adapter(layer, name) is None for name in own) else ()


def _matrices(layer: Any, name: str) -> tuple[Tensor, Tensor] | tuple[None, None]:
    if name not in layer.lora_A:
        return None, None
    return layer.lora_A[name].weight, layer.lora_B[name].weight


def _weight_of(base: Any, unpacked: dict[int, Nf4Weight]) -> Tensor | Nf4Weight:
    """The base weight; an NF4 one is unpacked once for each place that it lies at."""
    weight = base.weight
    if not _is_nf4(weight):
        dense: Tensor = weight
        return dense
    address = weight.data_ptr()
    if address not in unpacked:
        unpacked.clear()
        unpacked[address] = Nf4Weight.from_bitsandbytes(weight)
    return unpacked[address]


def _routing(layer: Any, state: _State, names: tuple[str, ...], x: Tensor) -> Routing:
    """The routing of this forward pass with this layer's scaling and dropout; layers that agree share one."""
    num_rows = x.numel() // x.shape[-1]
    scaling = tuple(float(layer.scaling.get(name, 1.0)) for name in names)
    dropout = tuple(_dropout(layer, name) for name in names)
    key = (num_rows, x.device, scaling, dropout)
    made = state.routings.get(key)
    if made is None:
        if state.routed is None:
            made = _one_adapter(num_rows, scaling, dropout, state, x.device)
        else:
            made = state.routed[0].with_scaling(scaling=scaling, dropout=dropout)
        state.routings[key] = made
    return made


def _one_adapter(
    num_rows: int, scaling: tuple[float, ...], dropout: tuple[float, ...], state: _State, device: torch.device
) -> Routing:
    segments = [Segment(first_row=0, num_rows=num_rows, adapter=0)] if num_rows else []
    return Routing.build(
        num_rows=num_rows, segments=segments, scaling=scaling, dropout=dropout,
        seeds=[state.seed], global_batches=[state.step], device=device,
    )  # fmt: skip


def _dropout(layer: Any, name: str) -> float:
    """The probability in force: none in evaluation, none where PEFT put an identity."""
    if name not in layer.lora_dropout:
        return 0.0
    module = layer.lora_dropout[name]
    return float(module.p) if isinstance(module, nn.Dropout) and module.training else 0.0


__all__ = ["PatchSummary", "patch_peft", "route", "unpatch_peft"]
