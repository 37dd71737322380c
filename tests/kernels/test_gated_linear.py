"""SwiGLU and the linear behind it as one: the bits of both ops apart, without the product kept."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from loraplex.kernels import fused_bank
from loraplex.kernels.bank import AdapterBank, banked_linears
from loraplex.kernels.fused_bank import fused_banked_linears
from loraplex.kernels.fused_gated import fused_gated_linears
from loraplex.kernels.gated_linear import banked_gated_linears
from loraplex.kernels.routing import Routing
from loraplex.kernels.swiglu import swiglu
from loraplex.kernels.swiglu_kernel import fused_swiglu
from loraplex.tests.kernels.cases import Case, Values, rounded
from loraplex.tests.kernels.test_bank import bank_of, call
from loraplex.tests.kernels.test_fused import CASES
from loraplex.tests.kernels.test_gemm import CONFIG, calls  # noqa: F401 (a fixture)

Linears = Callable[..., Tensor]

FUSED = Case(
    num_rows=96, num_features=136, out_features=(64,), segments=((0, 40, 1), (40, 56, 0)), lora_ranks=((4, 16),),
    dropout=(0.0, 0.0), bias=True,
)  # fmt: skip
"""With the frozen product of `test_gemm`: a block of two owners between blocks of one."""

RAGGED = Case(
    num_rows=60, num_features=72, out_features=(40,), segments=((0, 1, 0), (1, 25, 1), (26, 30, 2)),
    lora_ranks=((3, 16, 5),), dropout=(0.0, 0.1, 0.0),
)  # fmt: skip


def apart(gate_up: Tensor, *rest: Any, routing: Routing, targets: tuple[int, ...]) -> Tensor:
    """The two ops one after the other."""
    return fused_banked_linears(fused_swiglu(gate_up), *rest, routing=routing, targets=targets)


def gated(case: Case, dtype: torch.dtype, device: str) -> Values[Tensor]:
    """The case's values with gate and up, side by side, in place of x."""
    values = rounded(case.inputs(), dtype, device)
    random = torch.Generator().manual_seed(case.seed + 1)
    gate_up = torch.randn(case.num_rows, 2 * case.num_features, generator=random)
    values["x"] = gate_up.to(dtype).to(device).requires_grad_()
    return values


def check_same_bits(case: Case, dtype: torch.dtype, device: str, routing: Routing | None = None) -> None:
    found, wanted = (
        call(linears, case, values, bank_of(case, values, device, dtype), given)
        for linears, values, given in (
            (fused_gated_linears, gated(case, dtype, device), routing), (apart, gated(case, dtype, device), None)
        )
    )  # fmt: skip
    assert found.keys() == wanted.keys()
    assert {name for name in wanted if not torch.equal(found[name], wanted[name])} == set()


@pytest.mark.parametrize(
    "name",
    [
        "bias", "rank 100", "odd N and K", "one adapter in two segments",
        "rows of no adapter, an adapter without rows, one without the target", "three targets, a mask each",
    ],
)  # fmt: skip
def test_it_gives_the_bits_of_the_two_ops(name: str, device: str) -> None:
    check_same_bits(CASES[name], torch.float32, device)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_so_it_does_where_the_product_comes_behind_its_gradient(
    dropout: float,
    device: str,
    calls: dict[str, int],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fused_bank, "choose_config", lambda *_, **__: CONFIG)
    case = dataclasses.replace(FUSED, dropout=(dropout, 0.0))
    values = gated(case, torch.float16, device)
    routing = case.routing(device)
    call(fused_gated_linears, case, values, bank_of(case, values, device, torch.float16), routing)
    recorded = dict(routing.plans)
    check_same_bits(case, torch.float16, device, routing)
    assert routing.plans == recorded
    assert {key[0] for key in recorded} == {"forward", "gated backward"}
    # once each for the recording and for the two ops apart; the second gated call is played
    assert calls["backward"] == 2


def test_gate_and_up_may_want_no_gradient(
    device: str,
    calls: dict[str, int],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fused_bank, "choose_config", lambda *_, **__: CONFIG)
    case = dataclasses.replace(FUSED, dropout=(0.3, 0.0))
    found = []
    for wants in (True, False):
        values = gated(case, torch.float16, device)
        values["x"].requires_grad_(wants)
        found.append(call(fused_gated_linears, case, values, bank_of(case, values, device, torch.float16)))
    with_input, without = found
    assert set(with_input) - set(without) == {"x"}
    assert all(torch.allclose(without[name], with_input[name], rtol=1e-5, atol=1e-5) for name in without if name != "x")


@pytest.mark.parametrize("where", ["gate_up", "dy", "a", "b"])
def test_nan_stays_with_its_adapter(where: str, device: str) -> None:
    case = RAGGED

    def run(spoil: bool) -> dict[str, Tensor]:
        values = gated(case, torch.float32, device)
        bank = bank_of(case, values, device, torch.float32)
        with torch.no_grad():
            if spoil and where in ("a", "b"):
                getattr(bank.matrices(target=0, adapter=2), where).fill_(float("nan"))
            elif spoil:
                values["x" if where == "gate_up" else "dy"][30] = float("nan")
        return call(fused_gated_linears, case, values, bank)

    found, clean = run(True), run(False)
    others = torch.ones(case.num_rows, dtype=torch.bool)
    others[26:56] = False
    assert all(torch.equal(found[name][others], clean[name][others]) for name in ("y", "x"))
    assert all(torch.equal(found[f"lora_{m} 0 {a}"], clean[f"lora_{m} 0 {a}"]) for m in "ab" for a in (0, 1))


def test_the_product_is_not_kept(device: str) -> None:
    case = CASES["one adapter"]
    values = gated(case, torch.float32, device)
    bank = bank_of(case, values, device, torch.float32)
    kept: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        fused_gated_linears(values["x"], values["weights"], [None], bank, routing=case.routing(device), targets=[0])
    assert kept == [(case.num_rows, 2 * case.num_features), (case.num_rows, bank.padded_rank)]


@pytest.mark.parametrize("linears", [fused_gated_linears, banked_gated_linears])
def test_a_microbatch_of_no_adapter_is_the_frozen_linear(linears: Linears, device: str) -> None:
    case = dataclasses.replace(CASES["bias"], segments=())
    values = gated(case, torch.float32, device)
    bank = bank_of(case, values, device, torch.float32)
    found = call(linears, case, values, bank)
    torch.testing.assert_close(found["y"], call(apart, case, gated(case, torch.float32, device), bank)["y"])
    assert not bank.grad_a.any()


def test_the_public_op_is_the_two_ops_where_no_kernel_runs() -> None:
    def plain(gate_up: Tensor, *rest: Any, routing: Routing, targets: tuple[int, ...]) -> Tensor:
        return banked_linears(swiglu(gate_up), *rest, routing=routing, targets=targets)

    found, wanted = (
        call(linears, RAGGED, values, bank_of(RAGGED, values, "cpu", torch.float32))
        for linears, values in ((which, gated(RAGGED, torch.float32, "cpu")) for which in (banked_gated_linears, plain))
    )
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_arguments_that_do_not_fit_are_refused() -> None:
    bank = AdapterBank(in_features=8, out_features=(4,), lora_ranks=((2,),), dtype=torch.float32, device="cpu")
    routing = CASES["one adapter"].routing()
    with pytest.raises(ValueError, match=r"gate_up has shape \(3, 7\): give \[T, 2 I\]"):
        banked_gated_linears(torch.zeros(3, 7), [torch.zeros(4, 8)], [None], bank, routing=routing, targets=[0])
    with pytest.raises(ValueError, match=r"x has shape \(3, 7\), but weight is 4 x 8"):
        banked_gated_linears(torch.zeros(3, 14), [torch.zeros(4, 8)], [None], bank, routing=routing, targets=[0])


@pytest.mark.gpu
def test_a_captured_call_gives_the_same_bits() -> None:
    case = dataclasses.replace(CASES["1, 127, 128 and 129 tokens"], num_features=1024)
    values = gated(case, torch.bfloat16, "cuda")
    bank = bank_of(case, values, "cuda", torch.bfloat16)
    routing = case.routing("cuda")

    def both() -> Tensor:
        y = banked_gated_linears(values["x"], values["weights"], [None], bank, routing=routing, targets=[0])
        return torch.autograd.grad(y, [values["x"]], values["dy"])[0]

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        wanted = both()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = both()
    graph.replay()
    assert torch.equal(found, wanted)
