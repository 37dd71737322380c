"""Weights of a stage drawn at random, where it runs: for measurements, which need shapes and sane numbers only."""

import hashlib

import torch
from torch import Tensor, nn

from .place_weight import Nf4Settings, place_weight
from .weights import EMBEDDING, HEAD

DEFAULT_STD = 0.02
"""What transformers draws with where config.json says nothing."""


def random_weights(
    module: nn.Module,
    *,
    seed: int,
    dtype: torch.dtype,
    device: torch.device | str,
    std: float,
    tied_head: bool,
    nf4: Nf4Settings | None = None,
) -> None:
    """Replace the module's parameters by frozen random ones, made on the device: norms 1, all others normal.

    Each is drawn from the seed and its name in the whole model alone, so that the cut into stages changes nothing; a
    tied head gets the embedding's. With `nf4`, linears of decoder layers are rounded to 4 bits one by one. Devices of
    different kinds draw different numbers.
    """
    made: dict[str, Tensor] = {}
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        if name in (EMBEDDING, HEAD) and tied_head:
            if EMBEDDING not in made:
                made[EMBEDDING] = _drawn(EMBEDDING, parameter, seed=seed, dtype=dtype, device=device, std=std)
            tensor = made[EMBEDDING]
        else:
            tensor = _drawn(name, parameter, seed=seed, dtype=dtype, device=device, std=std)
        place_weight(module, name, tensor, dtype=dtype, nf4=nf4)


def _drawn(name: str, like: Tensor, *, seed: int, dtype: torch.dtype, device: torch.device | str, std: float) -> Tensor:
    if _is_norm(name):
        return torch.ones(like.shape, dtype=dtype, device=device)
    digest = hashlib.blake2b(f"base:{seed}:{name}".encode(), digest_size=8).digest()
    generator = torch.Generator(device=device).manual_seed(int.from_bytes(digest, "little") >> 1)
    # At this width activations stay finite in bfloat16 whatever the depth: every layer starts with a norm.
    return torch.empty(like.shape, dtype=dtype, device=device).normal_(0.0, std, generator=generator)


def _is_norm(name: str) -> bool:
    # input_layernorm, post_attention_layernorm, q_norm, k_norm, norm: all of these end so before `.weight`.
    return name.removesuffix(".weight").endswith("norm")
