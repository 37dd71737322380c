"""Where the gradients of an adapter's batch in the making gather: the seam between StageAdapter and what kernels write.

Two ways to store them: in each parameter's `.grad`, as autograd does, or as sums that live as long as the run beside a
packed copy of the weights (kernels/bank.py).
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn


class GradientStore(Protocol):
    """The gradients of one adapter on one stage, by parameter name; float32 or float64, shaped as the parameters."""

    def gathered(self) -> dict[str, Tensor]:
        """What has come so far; without an entry, or zero, where nothing has. Not copies."""
        ...

    def take(self, into: Mapping[str, Tensor]) -> None:
        """Copy what has come, zero where nothing has; the next batch begins at nothing (also after NaN)."""
        ...

    def put(self, gradients: Mapping[str, Tensor]) -> None:
        """Begin with these, from a checkpoint; the store may keep them."""
        ...

    def refresh(self) -> None:
        """The parameters have changed: copy them to where the kernels read them."""
        ...


class ParameterGradients:
    """Gradients in `.grad`; the kernels read the parameters themselves."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters

    def gathered(self) -> dict[str, Tensor]:
        return {name: owner.grad for name, owner in self._parameters.items() if owner.grad is not None}

    def take(self, into: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                into[name].zero_()
            else:
                into[name].copy_(parameter.grad)
            parameter.grad = None

    def put(self, gradients: Mapping[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            self._parameters[name].grad = gradient

    def refresh(self) -> None:
        """Nothing to do."""
