"""NF4 as bitsandbytes stores it: read bit for bit; its second rounding, ours and theirs."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from loraplex.kernels import nf4_stored
from loraplex.kernels.nf4 import quantize_nf4
from loraplex.kernels.nf4_stored import STATE, dynamic_levels, nf4_from_stored, quantize_in_pieces


def stored(dense: Tensor, *, nested: bool = False, kind: str = "nf4") -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """What bitsandbytes writes of a weight, and what it dequantises that to."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(dense, blocksize=64, quant_type=kind, compress_statistics=nested)
    return packed, state.as_dict(packed=True), dequantize_4bit(packed, state)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_bitsandbytes_wrote_dequantises_to_its_own_bits(nested: bool, dtype: torch.dtype) -> None:
    packed, parts, wanted = stored(torch.randn(96, 192).to(dtype), nested=nested)
    weight = nf4_from_stored(packed, parts, dtype=dtype)
    assert weight.shape == (96, 192)
    assert torch.equal(weight.dequantize(), wanted)


def test_pieces_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = torch.randn(37, 128)
    whole = quantize_nf4(dense)
    monkeypatch.setattr(nf4_stored, "_ROWS_AT_ONCE", 5 * 128)
    weight = quantize_in_pieces(dense, dtype=torch.bfloat16)
    assert torch.equal(weight.packed, whole.packed)
    assert torch.equal(weight.absmax, whole.absmax)
    assert torch.equal(weight.dequantize(), whole.dequantize().to(torch.bfloat16))


def test_the_second_rounding_is_bitsandbytes_own_but_where_two_levels_are_equally_near() -> None:
    from bitsandbytes.functional import create_dynamic_map

    assert torch.equal(dynamic_levels(), create_dynamic_map())  # type: ignore[no-untyped-call]
    dense = torch.randn(128, 1024)
    packed, parts, _ = stored(dense, nested=True)
    theirs = nf4_from_stored(packed, parts, dtype=torch.float32)
    ours = quantize_in_pieces(dense, dtype=torch.float32, double_quant=True)
    assert torch.equal(ours.packed, theirs.packed)
    exact = quantize_in_pieces(dense, dtype=torch.float32).absmax
    assert (ours.absmax == theirs.absmax).float().mean() > 0.99
    # Nobody is nearer than the nearest level.
    assert ((ours.absmax - exact).abs() <= (theirs.absmax - exact).abs() + 1e-6).all()
    assert (ours.absmax - exact).abs().max() > 1e-4


def test_what_is_not_whole_or_no_nf4_is_named() -> None:
    dense = torch.randn(8, 64)
    packed, parts, _ = stored(dense)
    with pytest.raises(ValueError, match=r"has no absmax, quant_map: give all that was saved with it"):
        nf4_from_stored(packed, {STATE: parts[STATE]}, dtype=torch.float32)
    broken: dict[str, Any] = {**parts, STATE: torch.tensor(list(b"{"), dtype=torch.uint8)}
    with pytest.raises(ValueError, match=r"quant_state.bitsandbytes__nf4 cannot be read"):
        nf4_from_stored(packed, broken, dtype=torch.float32)
    said = {**json.loads(bytes(parts[STATE].tolist())), "quant_type": "fp4"}
    other = {**parts, STATE: torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)}
    with pytest.raises(ValueError, match=r"the stored weight is fp4: give one that was quantised as nf4"):
        nf4_from_stored(packed, other, dtype=torch.float32)
