"""The fused kernels against the float64 reference: forward and every gradient, on every kind of call."""

import dataclasses
from typing import Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from loraplex.kernels import fused, reference
from loraplex.kernels.layout import DEFAULT_CONFIG
from loraplex.tests.kernels.cases import Case, expected, relative_errors, rounded, run, targets_of

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
ONE = Case(
    num_rows=70, num_features=96, out_features=(80,), segments=((0, 70, 0),), lora_ranks=((16,),), dropout=(0.0,)
)
CASES = {
    "one adapter": ONE,
    "dropout": dataclasses.replace(ONE, dropout=(0.3,)),
    "bias": dataclasses.replace(ONE, bias=True),
    "rank 1": dataclasses.replace(ONE, lora_ranks=((1,),)),
    "rank 24": dataclasses.replace(ONE, lora_ranks=((24,),)),
    "rank 100": dataclasses.replace(ONE, lora_ranks=((100,),)),
    "rank 256": dataclasses.replace(ONE, lora_ranks=((256,),), dropout=(0.1,)),
    "odd N and K": dataclasses.replace(ONE, num_features=77, out_features=(45,), dropout=(0.2,)),
    "1, 127, 128 and 129 tokens": Case(
        num_rows=385, num_features=64, out_features=(48,), dropout=(0.0, 0.1, 0.0, 0.5),
        segments=((0, 1, 2), (1, 127, 0), (128, 128, 3), (256, 129, 1)), lora_ranks=((4, 8, 16, 3),),
    ),
    "rows of no adapter, an adapter without rows, one without the target": Case(
        num_rows=90, num_features=64, out_features=(48,), segments=((5, 20, 0), (40, 30, 3)), bias=True,
        lora_ranks=((4, 8, 6, None),), dropout=(0.1, 0.0, 0.0, 0.3),
    ),
    "one adapter in two segments": Case(
        num_rows=60, num_features=64, out_features=(48,), segments=((0, 20, 0), (20, 15, 1), (35, 25, 0)),
        lora_ranks=((4, 8),), dropout=(0.1, 0.0),
    ),
    "three targets, a mask each": Case(
        num_rows=50, num_features=140, out_features=(100, 40, 70), segments=((0, 30, 1), (30, 20, 0)),
        lora_ranks=((4, 8), (4, None), (17, 2)), dropout=(0.4, 0.1), bias=True,
    ),
    "three targets, one mask": Case(
        num_rows=50, num_features=140, out_features=(100, 40, 70), segments=((0, 30, 1), (30, 20, 0)),
        lora_ranks=((4, 8), (4, 8), (4, 8)), dropout=(0.4, 0.1), targets=(9, 9, 9),
    ),
}  # fmt: skip


def call(case: Case, dtype: torch.dtype, device: str, *, adapter_dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    values = rounded(case.inputs(), dtype, device, adapter_dtype)
    return run(fused.fused_linears, values, routing=case.routing(device), targets=targets_of(case))


# no bfloat16 on the CPU: the interpreter of triton 3.9 multiplies its raw integers
@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", torch.float32),
        ("cpu", torch.float16),
        *(pytest.param("cuda", dtype, marks=pytest.mark.gpu) for dtype in TOLERANCE),
    ],
    indirect=["device"],
    ids=str,
)
@pytest.mark.parametrize("name", CASES)
def test_forward_and_every_gradient_are_the_references(name: str, dtype: torch.dtype, device: str) -> None:
    errors = relative_errors(call(CASES[name], dtype, device), expected(CASES[name], dtype))
    assert {which: error for which, error in errors.items() if not error < TOLERANCE[dtype]} == {}


@pytest.mark.parametrize("count", [2, 3, 4, 7, 16, 64])
def test_any_number_of_adapters_shares_a_call(count: int, device: str) -> None:
    rows = [1 + (5 * a) % 7 for a in range(count)]
    case = Case(
        num_rows=sum(rows), num_features=64, out_features=(32,),
        segments=tuple((sum(rows[:a]), rows[a], a) for a in range(count)),
        lora_ranks=(tuple(1 + a % 9 for a in range(count)),), dropout=tuple((a % 3) / 10 for a in range(count)),
    )  # fmt: skip
    errors = relative_errors(call(case, torch.float32, device), expected(case, torch.float32))
    assert {which: error for which, error in errors.items() if not error < 2e-6} == {}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count = draw(st.integers(1, 4))
    segments, row = [], 0
    for _ in range(draw(st.integers(1, 5))):
        row += draw(st.sampled_from([0, 0, 0, 3]))
        rows = draw(st.sampled_from([1, 2, 15, 31, 32, 33, 64, 65]))
        segments.append((row, rows, draw(st.integers(0, count - 1))))
        row += rows
    num_targets = draw(st.integers(1, 3))
    ranks = st.one_of(st.integers(1, 40), st.none())
    return Case(
        num_rows=row + draw(st.sampled_from([0, 4])),
        num_features=draw(st.sampled_from([16, 64, 128, 129, 200])),
        out_features=tuple(draw(st.sampled_from([16, 33, 64, 128, 130])) for _ in range(num_targets)),
        segments=tuple(segments),
        lora_ranks=tuple(tuple(draw(ranks) for _ in range(count)) for _ in range(num_targets)),
        dropout=tuple(draw(st.sampled_from([0.0, 0.1, 0.9])) for _ in range(count)),
        targets=tuple(draw(st.integers(0, 1)) for _ in range(num_targets)),
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 9)),
    )


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_random_calls_are_the_references(case: Case, device: str) -> None:
    errors = relative_errors(call(case, torch.float32, device), expected(case, torch.float32))
    assert {which: error for which, error in errors.items() if not error < 3e-6} == {}


def test_adapters_in_float32_beside_16_bit_activations_get_float32_gradients(device: str) -> None:
    case = CASES["1, 127, 128 and 129 tokens"]
    dtype = torch.float16
    found = call(case, dtype, device, adapter_dtype=torch.float32)
    assert {found[f"lora_a 0 {a}"].dtype for a in range(4)} == {torch.float32}
    errors = relative_errors(found, expected(case, dtype))
    assert {which: error for which, error in errors.items() if not error < 2e-3} == {}


def test_a_bias_of_another_dtype_leaves_the_output_that_of_the_input(device: str) -> None:
    case = CASES["rows of no adapter, an adapter without rows, one without the target"]
    values = rounded(case.inputs(), torch.float16, device)
    wide = [None if bias is None else bias.detach().float().requires_grad_() for bias in values["biases"]]
    wanted = expected(case, torch.float16)["y"]
    for linears in (fused.fused_linears, reference.multi_lora_linears):
        for segments in (case.segments, ()):
            routing = dataclasses.replace(case, segments=segments).routing(device)
            y = linears(
                values["x"], values["weights"], wide, values["lora_a"], values["lora_b"], routing=routing, targets=(0,)
            )
            assert y.dtype == torch.float16
            if segments:
                assert relative_errors({"y": y.detach()}, {"y": wanted})["y"] < 2e-3


def test_adapters_of_one_call_may_differ_in_dtype(device: str) -> None:
    case = CASES["one adapter in two segments"]
    values = rounded(case.inputs(), torch.float16, device)
    for matrices in (values["lora_a"][0], values["lora_b"][0]):
        first = matrices[0]
        assert first is not None
        matrices[0] = first.detach().float().requires_grad_()
    found = run(fused.fused_linears, values, routing=case.routing(device), targets=(0,))
    assert [found[f"lora_{side} 0 {a}"].dtype for side in "ab" for a in (0, 1)] == [torch.float32, torch.float16] * 2
    errors = relative_errors(found, expected(case, torch.float16))
    assert {which: error for which, error in errors.items() if not error < 2e-3} == {}


def test_any_leading_shape_and_any_stride(device: str) -> None:
    case = dataclasses.replace(ONE, num_rows=60, segments=((0, 60, 0),))
    values = rounded(case.inputs(), torch.float32, device)
    x = values["x"].detach()
    routing = case.routing(device)

    def linear(x: Tensor) -> Tensor:
        return fused.fused_linears(
            x, values["weights"], values["biases"], values["lora_a"], values["lora_b"], routing=routing, targets=(0,)
        )

    flat = linear(x)
    wide = torch.full((60, 200), float("nan"), device=device)
    wide[:, :96] = x
    assert torch.equal(linear(wide[:, :96]), flat)
    assert torch.equal(linear(x.t().contiguous().t()), flat)
    assert torch.equal(linear(x.view(3, 4, 5, 96)), flat.view(3, 4, 5, 80))


@pytest.mark.parametrize("name", ["dropout", "1, 127, 128 and 129 tokens", "three targets, one mask"])
def test_the_same_call_twice_gives_the_same_bits(name: str, device: str) -> None:
    first, second = (call(CASES[name], torch.float32, device) for _ in range(2))
    assert all(torch.equal(first[which], second[which]) for which in first)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["x", "dy", "lora_a", "lora_b"])
def test_nan_stays_with_its_adapter(where: Literal["x", "dy", "lora_a", "lora_b"], poison: float, device: str) -> None:
    case = dataclasses.replace(CASES["1, 127, 128 and 129 tokens"], dropout=(0.0, 0.1, 0.0, 0.0))
    clean = call(case, torch.float32, device)
    values = case.inputs()
    if where == "x" or where == "dy":
        values[where][130] = poison
    else:
        matrix = values[where][0][3]
        assert matrix is not None
        matrix[:] = poison
    values = rounded(values, torch.float32, device)
    found = run(fused.fused_linears, values, routing=case.routing(device), targets=(0,))
    others = torch.ones(case.num_rows, dtype=torch.bool)
    others[128:256] = False
    for which in ("y", "x"):
        assert torch.equal(found[which][others], clean[which][others])
    for a in (0, 1, 2):
        assert torch.equal(found[f"lora_a 0 {a}"], clean[f"lora_a 0 {a}"])
        assert torch.equal(found[f"lora_b 0 {a}"], clean[f"lora_b 0 {a}"])


def test_an_adapter_without_rows_gets_a_zero_gradient(device: str) -> None:
    found = call(CASES["rows of no adapter, an adapter without rows, one without the target"], torch.float32, device)
    assert not found["lora_a 0 1"].any()
    assert not found["lora_b 0 2"].any()


def test_a_split_sum_is_the_unsplit_one(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = dataclasses.replace(ONE, num_features=2048, out_features=(2048,), num_rows=40, segments=((0, 40, 0),))
    one = dataclasses.replace(DEFAULT_CONFIG, min_programs=1)
    monkeypatch.setattr(fused, "choose_config", lambda *_, **__: one)
    whole = call(case, torch.float32, device)
    four = dataclasses.replace(DEFAULT_CONFIG, min_programs=8)
    monkeypatch.setattr(fused, "choose_config", lambda *_, **__: four)
    errors = relative_errors(call(case, torch.float32, device), {w: t.cpu().double() for w, t in whole.items()})
    assert {which: error for which, error in errors.items() if not error < 2e-6} == {}


def test_nothing_but_input_and_skinny_product_is_saved_for_backward(device: str) -> None:
    case = dataclasses.replace(ONE, dropout=(0.3,), num_rows=256, segments=((0, 256, 0),))
    values = rounded(case.inputs(), torch.float32, device)
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        fused.fused_linears(
            values["x"], values["weights"], values["biases"], values["lora_a"], values["lora_b"],
            routing=case.routing(device), targets=(0,),
        )  # fmt: skip
    # x, S, and the packed A and B: neither a mask nor a dropped input
    assert sorted(tuple(t.shape) for t in saved) == [(16, 96), (80, 16), (256, 16), (256, 96)]
