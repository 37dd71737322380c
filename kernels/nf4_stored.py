"""NF4 weights as bitsandbytes writes them into safetensors, and its second rounding of the blocks' maxima.

A quantised `NAME.weight` (uint8 `[N * K / 2, 1]`) has beside it, each under `NAME.weight.` and its own word: `absmax`,
`quant_map`, `quant_state.bitsandbytes__nf4` (JSON as bytes) and, where the maxima were rounded too ("double quant"),
`nested_absmax` and `nested_quant_map`. Read from what bitsandbytes 0.50.2 writes; nothing of it is imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .nf4 import Nf4Weight, quantize_nf4

STATE = "quant_state.bitsandbytes__nf4"
PARTS = ("absmax", "quant_map", STATE)
NESTED_PARTS = ("nested_absmax", "nested_quant_map")
NESTED_BLOCK = 256
"""Maxima that share one of their own, as in bitsandbytes."""
_ROWS_AT_ONCE = 16 << 20
"""Weights that are rounded at a time: the float32 and int64 copies of a whole 70B matrix would take 3 GiB."""


def nf4_from_stored(packed: Tensor, parts: Mapping[str, Tensor], *, dtype: torch.dtype) -> Nf4Weight:
    """A weight from what a checkpoint holds of it; `parts` by the words of PARTS and, if there, NESTED_PARTS.

    It dequantises to `dtype`, whatever the checkpoint says. Raises `ValueError` on what is not whole or no NF4.
    """
    missing = [word for word in PARTS if word not in parts]
    if missing:
        raise ValueError(f"the stored NF4 weight has no {', '.join(missing)}: give all that was saved with it")
    state = _state(parts[STATE])
    absmax = parts["absmax"]
    if "nested_absmax" in parts:
        absmax = _unfolded(
            absmax,
            parts["nested_absmax"],
            parts["nested_quant_map"],
            block=state["nested_blocksize"],
            offset=state["nested_offset"],
        )
    n, k = state["shape"]
    return Nf4Weight(
        packed=packed.reshape(-1),
        absmax=absmax.float(),
        code=parts["quant_map"].float(),
        block_size=state["blocksize"],
        shape=(n, k),
        dtype=dtype,
    )


def quantize_in_pieces(weight: Tensor, *, dtype: torch.dtype, double_quant: bool = False) -> Nf4Weight:
    """Round a weight `[N, K]` to NF4 on its own device, some rows at a time; it dequantises to `dtype`.

    With `double_quant` the blocks' maxima are rounded as well. They are kept unfolded either way (a sixteenth of a byte
    a weight), so that saves no memory: it gives the values of checkpoints made so.
    """
    rows = max(1, _ROWS_AT_ONCE // weight.shape[1])
    pieces = [quantize_nf4(piece) for piece in torch.split(weight, rows)]
    absmax = torch.cat([piece.absmax for piece in pieces])
    return Nf4Weight(
        packed=torch.cat([piece.packed for piece in pieces]),
        absmax=_rounded(absmax) if double_quant else absmax,
        code=pieces[0].code,
        block_size=pieces[0].block_size,
        shape=(weight.shape[0], weight.shape[1]),
        dtype=dtype,
    )


def _state(packed: Tensor) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(bytes(packed.cpu().tolist()))
        kind, _ = state["quant_type"], (state["blocksize"], state["shape"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{STATE} cannot be read ({error}): give what bitsandbytes saved") from error
    if kind != "nf4":
        raise ValueError(f"the stored weight is {kind}: give one that was quantised as nf4")
    return state


def _unfolded(codes: Tensor, maxima: Tensor, levels: Tensor, *, block: int, offset: float) -> Tensor:
    scale = maxima.float().repeat_interleave(block)[: codes.numel()]
    return levels.float()[codes.long()] * scale + offset


def _rounded(absmax: Tensor) -> Tensor:
    # Around their mean, to the nearest of 256 levels of the largest of 256.
    offset = absmax.mean()
    centred = absmax - offset
    padded = torch.nn.functional.pad(centred, (0, -centred.numel() % NESTED_BLOCK)).view(-1, NESTED_BLOCK)
    maxima = padded.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    levels = dynamic_levels(absmax.device)
    codes = torch.bucketize(padded / maxima[:, None], (levels[1:] + levels[:-1]) / 2)
    return _unfolded(codes.view(-1)[: centred.numel()], maxima, levels, block=NESTED_BLOCK, offset=offset.item())


def dynamic_levels(device: torch.device | str = "cpu") -> Tensor:
    """The 256 levels of bitsandbytes' 8-bit "dynamic" type: seven decades, each with twice the levels of the last.

    "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861, section 2.2.
    """
    levels = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1.0, 2**decade + 1)
        middles = 10.0 ** (decade - 6) * (edges[:-1] + edges[1:]) / 2
        levels += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(levels), device=device)
