"""Activations made again in the backward instead of kept from the forward."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def remade(tensor: Tensor, make: Callable[[], Tensor], *, enabled: bool = True) -> Iterator[None]:
    """Inside, autograd keeps `make` in place of `tensor` wherever it would save it.

    `make` must give the same bits again from tensors that are kept anyway. Meant for what is cheap to make: the outputs
    of norms, and SwiGLU's product.
    """
    if not enabled or not torch.is_grad_enabled():
        yield
        return
    address, num_elements = tensor.data_ptr(), tensor.numel()

    def pack(saved: Tensor) -> Any:
        if saved.data_ptr() == address and saved.numel() == num_elements:
            return saved.shape
        return saved

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad():
            return make().view(kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
