"""NF4: the format, the products, and what is refused."""

import sys
import types
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from loraplex.kernels import fused, multi_lora_linear, multi_lora_linears, nf4
from loraplex.kernels.nf4 import NF4_CODE, Nf4Weight, joined_nf4, quantize_nf4, split_nf4
from loraplex.tests.kernels.cases import Case, Values, relative_errors, rounded, run

CASE = Case(
    num_rows=40, num_features=128, out_features=(96,), segments=((0, 25, 0), (25, 15, 1)), lora_ranks=((4, 8),),
    dropout=(0.2, 0.0),
)  # fmt: skip


def test_the_first_of_two_weights_stands_in_the_high_half_of_its_byte() -> None:
    weight = Nf4Weight(
        packed=torch.tensor([0x0F, 0x70], dtype=torch.uint8), absmax=torch.tensor([2.0]), code=torch.tensor(NF4_CODE),
        block_size=4, shape=(1, 4), dtype=torch.float32,
    )  # fmt: skip
    assert weight.dequantize().tolist() == [[-2.0, 2.0, 0.0, -2.0]]


def test_rounding_takes_the_nearest_level(device: str) -> None:
    dense = torch.randn(8, 128, device=device)
    weight = quantize_nf4(dense)
    blocks = dense.view(-1, 64)
    levels = torch.tensor(NF4_CODE, device=device) * blocks.abs().amax(dim=1)[:, None, None]
    nearest = (blocks[:, :, None] - levels).abs().argmin(dim=2, keepdim=True)
    wanted = levels.expand(-1, 64, -1).gather(2, nearest).view(8, 128)
    torch.testing.assert_close(weight.dequantize(), wanted)


def test_the_op_on_an_nf4_weight_is_the_op_on_what_it_stands_for(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4, "BUFFER_BYTES", 40 * 128 * 2)
    values = rounded(CASE.inputs(), torch.float16, device)
    packed = quantize_nf4(values["weights"][0])
    dense = rounded(CASE.inputs(), torch.float16, device)
    dense["weights"] = [packed.dequantize()]
    quantized: Values[Nf4Weight] = {
        "x": values["x"], "weights": [packed], "biases": values["biases"],
        "lora_a": values["lora_a"], "lora_b": values["lora_b"], "dy": values["dy"],
    }  # fmt: skip
    found = run(fused.fused_linears, quantized, routing=CASE.routing(device), targets=(0,))
    wanted = run(fused.fused_linears, dense, routing=CASE.routing(device), targets=(0,))
    errors = relative_errors(found, {name: tensor.cpu().double() for name, tensor in wanted.items()})
    assert {which: error for which, error in errors.items() if not error < 1e-3} == {}


def test_several_nf4_weights_in_one_call_are_their_dense_ones(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4, "BUFFER_BYTES", 40 * 128 * 2)
    case = replace(CASE, out_features=(48, 32), lora_ranks=((4, 8), (None, 3)), bias=True)
    values = rounded(case.inputs(), torch.float16, device)
    apart = [quantize_nf4(weight) for weight in values["weights"]]
    joined = split_nf4(joined_nf4(apart), [48, 32])
    dense = rounded(case.inputs(), torch.float16, device)
    dense["weights"] = [weight.dequantize() for weight in apart]
    wanted = run(fused.fused_linears, dense, routing=case.routing(device), targets=(0, 0))
    for weights in (apart, list(joined)):
        own = rounded(case.inputs(), torch.float16, device)
        quantized: Values[Nf4Weight] = {
            "x": own["x"], "weights": weights, "biases": own["biases"],
            "lora_a": own["lora_a"], "lora_b": own["lora_b"], "dy": own["dy"],
        }  # fmt: skip
        found = run(fused.fused_linears, quantized, routing=case.routing(device), targets=(0, 0))
        errors = relative_errors(found, {name: tensor.cpu().double() for name, tensor in wanted.items()})
        assert {which: error for which, error in errors.items() if not error < 1e-3} == {}


def test_joined_weights_are_split_and_joined_again_without_a_copy() -> None:
    apart = [quantize_nf4(torch.randn(rows, 128)) for rows in (3, 5)]
    joined = joined_nf4(apart)
    assert joined.shape == (8, 128)
    assert torch.equal(joined.dequantize(), torch.cat([weight.dequantize() for weight in apart]))
    parts = split_nf4(joined, [3, 5])
    assert [torch.equal(part.dequantize(), own.dequantize()) for part, own in zip(parts, apart, strict=True)] == [
        True
    ] * 2
    again = joined_nf4(parts)
    assert (again.packed.data_ptr(), again.absmax.data_ptr()) == (joined.packed.data_ptr(), joined.absmax.data_ptr())
    assert torch.equal(again.dequantize(), joined.dequantize())
    with pytest.raises(ValueError, match="join alike ones only"):
        joined_nf4([apart[0], quantize_nf4(torch.randn(2, 64))])


def test_dense_and_nf4_weights_do_not_go_into_one_call() -> None:
    case = replace(CASE, out_features=(48, 32), lora_ranks=((4, 8), (4, 3)))
    values = rounded(case.inputs(), torch.float32, "cpu")
    weights: list[Tensor | Nf4Weight] = [quantize_nf4(values["weights"][0]), values["weights"][1]]
    with pytest.raises(ValueError, match="weights holds NF4 and dense weights: give all of one call in one form"):
        multi_lora_linears(
            values["x"], weights, values["biases"], values["lora_a"], values["lora_b"],
            routing=case.routing(), targets=(0, 0),
        )  # fmt: skip


def test_the_public_op_takes_an_nf4_weight(device: str) -> None:
    values = rounded(CASE.inputs(), torch.float32, device)
    packed = quantize_nf4(values["weights"][0])
    routing = CASE.routing(device)

    def linear(weight: Tensor | Nf4Weight) -> Tensor:
        return multi_lora_linear(
            values["x"], weight, None, values["lora_a"][0], values["lora_b"][0], routing=routing, target=0
        )

    torch.testing.assert_close(linear(packed), linear(packed.dequantize()))


def test_without_bitsandbytes_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        Nf4Weight.from_bitsandbytes(None)


def test_nested_statistics_are_unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    functional = types.ModuleType("bitsandbytes.functional")
    monkeypatch.setattr(functional, "dequantize_blockwise", lambda absmax, state: absmax.float() * state, raising=False)
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", functional)
    state = types.SimpleNamespace(
        quant_type="nf4", nested=True, absmax=torch.tensor([3], dtype=torch.uint8), state2=0.5, offset=1.0,
        code=torch.tensor(NF4_CODE), blocksize=64, shape=(1, 64), dtype=torch.float32,
    )  # fmt: skip
    parameter = types.SimpleNamespace(quant_state=state, data=torch.zeros(32, 1, dtype=torch.uint8))
    weight = Nf4Weight.from_bitsandbytes(parameter)
    assert weight.absmax.tolist() == [2.5]
    assert weight.dequantize()[0, 0] == -2.5
    state.quant_type = "fp4"
    with pytest.raises(ValueError, match="without NF4 state"):
        Nf4Weight.from_bitsandbytes(parameter)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="K = 100, which is no multiple of block_size = 64"):
        quantize_nf4(torch.zeros(2, 100))
    with pytest.raises(ValueError, match=r"packed has 3 bytes.* give 64 and 2"):
        Nf4Weight(
            packed=torch.zeros(3, dtype=torch.uint8), absmax=torch.zeros(2), code=torch.zeros(16), block_size=64,
            shape=(1, 128), dtype=torch.float32,
        )  # fmt: skip


@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_own_weights_come_out_bit_for_bit(nested: bool) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    dense = torch.randn(96, 128)
    packed, state = quantize_4bit(dense, blocksize=64, quant_type="nf4", compress_statistics=nested)
    weight = Nf4Weight.from_bitsandbytes(types.SimpleNamespace(quant_state=state, data=packed))
    assert torch.equal(weight.dequantize(), dequantize_4bit(packed, state))
    assert torch.equal(quantize_nf4(dense).packed, packed.reshape(-1))
