"""Gradients of one adapter in packed banks: float32 sums that the kernels add to, beside the copies they read."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..kernels.bank import AdapterBank, zero_gradients


class BankGradients:
    """A GradientStore over the banks of a stage. `packed` and `sums` are views of them, by parameter name."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        adapter: int,
        banks: Sequence[AdapterBank],
        packed: Mapping[str, Tensor],
        sums: Mapping[str, Tensor],
    ) -> None:
        self._parameters = parameters
        self._adapter = adapter
        self._banks = tuple(banks)
        self._packed = packed
        self._sums = sums

    def gathered(self) -> dict[str, Tensor]:
        return dict(self._sums)

    def take(self, into: Mapping[str, Tensor]) -> None:
        torch._foreach_copy_([into[name] for name in self._sums], list(self._sums.values()))
        zero_gradients(self._banks, adapter=self._adapter)

    def put(self, gradients: Mapping[str, Tensor]) -> None:
        zero_gradients(self._banks, adapter=self._adapter)
        for name, gradient in gradients.items():
            self._sums[name].copy_(gradient)

    @torch.no_grad()
    def refresh(self) -> None:
        torch._foreach_copy_(list(self._packed.values()), list(self._parameters.values()))
