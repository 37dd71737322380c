"""Tensors by name that lie one after another in one: a launch over the whole reaches them all."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


class FlatTensors(Mapping[str, Tensor]):
    """Views, by name, of `whole [n]`."""

    def __init__(self, whole: Tensor, shapes: Mapping[str, torch.Size]) -> None:
        parts = torch.split(whole, [shape.numel() for shape in shapes.values()])
        self.whole = whole
        self._views = {name: part.view(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}

    @classmethod
    def like(cls, tensors: Mapping[str, Tensor]) -> "FlatTensors":
        """Room for tensors of the same names, shapes, dtype and device; what is in it is undefined."""
        first = next(iter(tensors.values()))
        whole = torch.empty(sum(one.numel() for one in tensors.values()), dtype=first.dtype, device=first.device)
        return cls(whole, {name: one.shape for name, one in tensors.items()})

    def squares(self) -> Tensor:
        """float64 `[tensors]`: the squared norm of each, by itself."""
        return torch.stack(torch._foreach_norm(list(self._views.values()), 2, dtype=torch.float64)).square()

    def __getitem__(self, name: str) -> Tensor:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)
