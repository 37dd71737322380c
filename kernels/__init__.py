"""Multi-LoRA linears: tensors in, tensors out; knows no plan. Importing this loads neither torch nor triton nor numpy.

`multi_lora_linear` (one linear), `multi_lora_linears` (several over one input), `lora_linear` (one adapter) and
`banked_linears` (matrices that stay packed in an `AdapterBank`) pick the fused kernels on a CUDA device and the plain
PyTorch reference elsewhere. So do the ops between the linears, each in its own module: `rms_norm`, `rope`, `swiglu`,
`cross_entropy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .segments import Segment

if TYPE_CHECKING:
    from .bank import AdapterBank, banked_linears
    from .multi_lora import lora_linear, multi_lora_linear, multi_lora_linears
    from .routing import Routing

__all__ = [
    "AdapterBank", "Routing", "Segment", "banked_linears", "lora_linear", "multi_lora_linear", "multi_lora_linears",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in {"lora_linear", "multi_lora_linear", "multi_lora_linears"}:
        from . import multi_lora

        return getattr(multi_lora, name)
    if name in {"AdapterBank", "banked_linears"}:
        from . import bank

        return getattr(bank, name)
    if name == "Routing":
        from .routing import Routing

        return Routing
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
