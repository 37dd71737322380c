"""Puts frozen weights into a stage's module: as they are, or in 4 bits in place of a decoder layer's linear."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..kernels.nf4 import Nf4Weight
from ..kernels.nf4_stored import quantize_in_pieces
from ..planner.errors import JobError
from .nf4_linear import Nf4Linear

_LAYER_LINEAR = re.compile(r"model\.layers\.\d+\..*_proj\.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Nf4Settings:
    """How dense weights are rounded as they come in."""

    double_quant: bool = False
    """Round the blocks' maxima too, as bnb_4bit_use_double_quant asks."""


def place_weight(
    module: nn.Module, name: str, tensor: Tensor, *, dtype: torch.dtype, nf4: Nf4Settings | None = None
) -> None:
    """Put a frozen weight in place of the module's parameter `name`, in `dtype`; on the device where it is already.

    With `nf4`, the weight of a decoder layer's linear is rounded to 4 bits first; norms, embeddings and head never are.
    Raises JobError where the shapes differ or 4 bits cannot hold it.
    """
    owner_name, _, attribute = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    _check_shape(name, tuple(tensor.shape), expected=tuple(getattr(owner, attribute).shape))
    if nf4 is None or not _LAYER_LINEAR.fullmatch(name):
        setattr(owner, attribute, nn.Parameter(tensor.to(dtype), requires_grad=False))
        return
    try:
        weight = quantize_in_pieces(tensor, dtype=dtype, double_quant=nf4.double_quant)
    except ValueError as error:
        raise JobError(f"weight '{name}' cannot be held in 4 bits ({error}); leave out load_in_4bit") from None
    _put(module, owner_name, weight)


def place_nf4(module: nn.Module, name: str, weight: Nf4Weight) -> None:
    """Put a weight that is in 4 bits already in place of the linear whose parameter `name` it is."""
    owner_name, _, attribute = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    if not isinstance(owner, nn.Linear) or not _LAYER_LINEAR.fullmatch(name):
        raise JobError(f"weight '{name}' is stored in 4 bits; only linears of decoder layers may be")
    _check_shape(name, weight.shape, expected=tuple(getattr(owner, attribute).shape))
    _put(module, owner_name, weight)


def _put(module: nn.Module, owner_name: str, weight: Nf4Weight) -> None:
    parent_name, _, attribute = owner_name.rpartition(".")
    bias = module.get_submodule(owner_name).bias
    assert bias is None or isinstance(bias, nn.Parameter)
    setattr(module.get_submodule(parent_name), attribute, Nf4Linear(weight, bias))


def _check_shape(name: str, shape: tuple[int, ...], *, expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise JobError(
            f"weight '{name}' has shape {shape}, config.json asks for {expected}; give the weights and the config.json "
            "of one model"
        )
