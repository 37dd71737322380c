"""Adapters that stay packed: the same linears, gradients added into the bank's sums."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from loraplex.kernels.bank import AdapterBank, banked_linears, zero_gradients
from loraplex.kernels.bucket import Bucket
from loraplex.kernels.fused_bank import fused_banked_linears
from loraplex.kernels.routing import Routing, Segment
from loraplex.tests.kernels.cases import Case, Values, expected, relative_errors, rounded, targets_of
from loraplex.tests.kernels.test_fused import CASES, TOLERANCE

Linears = Callable[..., Tensor]

NAMES = (
    "dropout", "bias", "rank 24", "1, 127, 128 and 129 tokens", "one adapter in two segments",
    "rows of no adapter, an adapter without rows, one without the target",
    "three targets, a mask each", "three targets, one mask",
)  # fmt: skip


def bank_of(case: Case, values: Values[Tensor], device: str, dtype: torch.dtype) -> AdapterBank:
    """A bank that holds the case's matrices."""
    bank = AdapterBank(
        in_features=case.num_features, out_features=case.out_features, lora_ranks=case.lora_ranks, dtype=dtype,
        device=device,
    )  # fmt: skip
    for target, (all_a, all_b) in enumerate(zip(values["lora_a"], values["lora_b"], strict=True)):
        for adapter, (a, b) in enumerate(zip(all_a, all_b, strict=True)):
            views = bank.matrices(target=target, adapter=adapter)
            assert (views is None) == (a is None)
            if views is not None and a is not None and b is not None:
                views.a.copy_(a.detach())
                views.b.copy_(b.detach())
    return bank


def sums_of(bank: AdapterBank) -> dict[str, Tensor]:
    """{name as in `cases.run`: copy of the sum}."""
    found = {}
    for target in range(bank.num_targets):
        for adapter in range(bank.num_adapters):
            views = bank.matrices(target=target, adapter=adapter)
            if views is not None:
                found[f"lora_a {target} {adapter}"] = views.grad_a.clone()
                found[f"lora_b {target} {adapter}"] = views.grad_b.clone()
    return found


def call(
    linears: Linears, case: Case, values: Values[Tensor], bank: AdapterBank, routing: Routing | None = None
) -> dict[str, Tensor]:
    """Forward and backward once: the output, the input's and the biases' gradients, and the sums as they then are."""
    y = linears(
        values["x"], values["weights"], values["biases"], bank,
        routing=routing or case.routing(str(bank.a.device)), targets=targets_of(case),
    )  # fmt: skip
    torch.autograd.backward(y, values["dy"])
    found = {"y": y.detach()}
    named = {"x": values["x"], **{f"bias {t}": b for t, b in enumerate(values["biases"]) if b is not None}}
    found |= {name: tensor.grad for name, tensor in named.items() if tensor.grad is not None}
    return found | sums_of(bank)


# on the CPU both the kernels, interpreted, and what `banked_linears` falls back to
@pytest.fixture(params=[fused_banked_linears, banked_linears], ids=["fused", "public"])
def linears(request: pytest.FixtureRequest) -> Linears:
    chosen: Linears = request.param
    return chosen


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
@pytest.mark.parametrize("name", NAMES)
def test_forward_and_every_gradient_are_the_references(
    name: str, dtype: torch.dtype, device: str, linears: Linears
) -> None:
    case = CASES[name]
    values = rounded(case.inputs(), dtype, device)
    bank = bank_of(case, values, device, dtype)
    errors = relative_errors(call(linears, case, values, bank), expected(case, dtype))
    assert {which: error for which, error in errors.items() if not error < TOLERANCE[dtype]} == {}
    assert {sums.dtype for sums in sums_of(bank).values()} == {torch.float32}


def test_sums_grow_microbatch_by_microbatch_until_they_are_zeroed(device: str, linears: Linears) -> None:
    case = CASES["three targets, a mask each"]
    other = dataclasses.replace(case, segments=((0, 17, 0), (20, 30, 1)))
    values = rounded(case.inputs(), torch.float32, device)
    bank = bank_of(case, values, device, torch.float32)
    call(linears, case, values, bank)
    found = call(linears, other, values, bank)
    first, second = (expected(microbatch, torch.float32) for microbatch in (case, other))
    total = {name: first[name] + second[name] for name in first if name.startswith("lora")}
    errors = relative_errors(found, total)
    assert {which: error for which, error in errors.items() if not error < 2e-6} == {}

    zero_gradients([bank], adapter=1)
    left = sums_of(bank)
    assert {name for name, sums in left.items() if sums.any()} == {name for name in left if name.endswith(" 0")}


def test_an_adapter_without_rows_is_neither_read_nor_written(device: str, linears: Linears) -> None:
    case = CASES["rows of no adapter, an adapter without rows, one without the target"]
    values = rounded(case.inputs(), torch.float32, device)
    bank = bank_of(case, values, device, torch.float32)
    clean = call(linears, case, values, bank)
    for adapter in (1, 2):  # without rows
        for tensor in (bank.a, bank.b, bank.grad_a, bank.grad_b):
            tensor[adapter] = float("nan")
    for sums in (bank.grad_a, bank.grad_b):
        sums[0] = 0.0
    values["x"].grad = None
    for bias in values["biases"]:
        assert bias is not None
        bias.grad = None
    found = call(linears, case, values, bank)
    assert all(torch.equal(found[name], clean[name]) for name in clean if not name.endswith((" 1", " 2")))
    assert found["lora_a 0 1"].isnan().all()


@pytest.mark.parametrize("where", ["x", "dy", "a", "b"])
def test_nan_stays_with_its_adapter(where: str, device: str, linears: Linears) -> None:
    case = dataclasses.replace(CASES["1, 127, 128 and 129 tokens"], dropout=(0.0, 0.1, 0.0, 0.0))
    values = rounded(case.inputs(), torch.float32, device)
    clean = call(linears, case, values, bank_of(case, values, device, torch.float32))
    values = rounded(case.inputs(), torch.float32, device)
    bank = bank_of(case, values, device, torch.float32)
    with torch.no_grad():
        if where in ("x", "dy"):
            values[where][130] = float("nan")  # type: ignore[literal-required]
        else:
            getattr(bank.matrices(target=0, adapter=3), where).fill_(float("nan"))
    found = call(linears, case, values, bank)
    others = torch.ones(case.num_rows, dtype=torch.bool)
    others[128:256] = False
    assert all(torch.equal(found[name][others], clean[name][others]) for name in ("y", "x"))
    assert all(torch.equal(found[f"lora_{m} 0 {a}"], clean[f"lora_{m} 0 {a}"]) for m in "ab" for a in (0, 1, 2))
    # the bad microbatch leaves no trace once the adapter's sums are zeroed
    zero_gradients([bank], adapter=3)
    assert not sums_of(bank)["lora_a 0 3"].any()
    assert not bank.grad_a[3].any()


def test_the_same_call_twice_gives_the_same_bits(device: str) -> None:
    case = CASES["three targets, one mask"]
    values = rounded(case.inputs(), torch.float32, device)
    first, second = (
        call(fused_banked_linears, case, rounded(case.inputs(), torch.float32, device), bank)
        for bank in (bank_of(case, values, device, torch.float32) for _ in range(2))
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_input_without_gradient_gets_no_pass_and_the_bank_still_its_own(device: str, linears: Linears) -> None:
    case = CASES["dropout"]
    values = rounded(case.inputs(), torch.float32, device)
    with_dx = call(linears, case, values, bank_of(case, values, device, torch.float32))
    bank = bank_of(case, values, device, torch.float32)
    values["x"] = values["x"].detach()
    without = call(linears, case, values, bank)
    assert "x" not in without
    errors = relative_errors(without, {name: t.cpu().double() for name, t in with_dx.items() if name != "x"})
    assert {which: error for which, error in errors.items() if not error < 1e-6} == {}
    assert bank.anchor.grad is None


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_adds_once(reentrant: bool, device: str, linears: Linears) -> None:
    case = CASES["three targets, one mask"]
    values = rounded(case.inputs(), torch.float32, device)
    plain = call(linears, case, values, bank_of(case, values, device, torch.float32))
    values = rounded(case.inputs(), torch.float32, device)
    bank = bank_of(case, values, device, torch.float32)

    def recomputed(x: Tensor, *rest: object, routing: Routing, targets: tuple[int, ...]) -> Tensor:
        def forward(x: Tensor) -> Tensor:
            return linears(x, *rest, routing=routing, targets=targets)

        y: Tensor = checkpoint(forward, x, use_reentrant=reentrant)
        return y

    found = call(recomputed, case, values, bank)
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_another_adapters_step_may_come_between_forward_and_backward(device: str, linears: Linears) -> None:
    case = CASES["one adapter in two segments"]
    only_1 = dataclasses.replace(case, segments=((20, 15, 1),))
    values = rounded(case.inputs(), torch.float32, device)
    plain = call(linears, only_1, values, bank_of(case, values, device, torch.float32))
    values = rounded(case.inputs(), torch.float32, device)
    bank = bank_of(case, values, device, torch.float32)

    def stepped(*args: object, routing: Routing, targets: tuple[int, ...]) -> Tensor:
        y = linears(*args, routing=routing, targets=targets)
        bank.a[0] += 1.0
        bank.b[0] -= 1.0
        return y

    found = call(stepped, only_1, values, bank)
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_other_frozen_weights_are_noticed(device: str) -> None:
    case = CASES["bias"]
    values = rounded(case.inputs(), torch.float32, device)
    values["biases"] = [bias.detach() for bias in values["biases"] if bias is not None]
    bank = bank_of(case, values, device, torch.float32)
    first = call(fused_banked_linears, case, values, bank)["y"]
    changed = values["biases"][0]
    assert changed is not None
    changed += 1.0
    torch.testing.assert_close(call(fused_banked_linears, case, values, bank)["y"], first + 1.0)
    values["weights"] = [torch.zeros_like(weight) for weight in values["weights"]]
    third = call(fused_banked_linears, case, values, bank)["y"]
    assert not torch.allclose(third, first + 1.0)


def test_a_microbatch_of_no_adapter_is_the_frozen_linear(device: str, linears: Linears) -> None:
    case = dataclasses.replace(CASES["bias"], segments=())
    values = rounded(case.inputs(), torch.float32, device)
    bank = bank_of(case, values, device, torch.float32)
    found = call(linears, case, values, bank)
    wanted = expected(case, torch.float32)
    errors = relative_errors(found, {name: wanted[name] for name in ("y", "x", "bias 0")})
    assert {which: error for which, error in errors.items() if not error < 2e-6} == {}
    assert not bank.grad_a.any()


def test_views_of_a_bank_do_not_overlap_and_padding_is_zero() -> None:
    bank = AdapterBank(
        in_features=8, out_features=(4, 6), lora_ranks=((3, None), (2, 20)), dtype=torch.float32, device="cpu"
    )
    assert bank.matrices(target=0, adapter=1) is None
    for value, (target, adapter) in enumerate(((0, 0), (1, 0), (1, 1)), start=1):
        views = bank.matrices(target=target, adapter=adapter)
        assert views is not None
        for view in (views.a, views.b, views.grad_a, views.grad_b):
            view.fill_(value)
    assert bank.a.sum(dim=2).div(8)[0].tolist() == [1.0] * 3 + [0.0] * 29 + [2.0] * 2 + [0.0] * 30
    assert bank.a.sum(dim=2).div(8)[1].tolist() == [0.0] * 32 + [3.0] * 20 + [0.0] * 12
    assert bank.b[0].sum(dim=1).tolist() == [3.0] * 4 + [4.0] * 6
    assert bank.b[1].sum(dim=1).tolist() == [0.0] * 4 + [60.0] * 6
    assert torch.equal(bank.grad_b, bank.b)


@pytest.mark.parametrize(
    ("sizes", "ranks", "message"),
    [
        ((4, 4), ((1,),), "out_features has 2 entries, lora_ranks 1"),
        ((4, 4), ((1,), (1, 2)), r"lora_ranks has \[1, 2\] adapters"),
        ((4,), ((None, None),), "lora_ranks holds None alone"),
        ((4,), ((0,),), "lora_ranks holds r = 0: r lies between 1 and 256"),
        ((4,) * 5, ((1,),) * 5, "out_features has 5 entries"),
    ],
)
def test_a_bank_that_cannot_be_is_refused(
    sizes: tuple[int, ...], ranks: tuple[tuple[int | None]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        AdapterBank(in_features=8, out_features=sizes, lora_ranks=ranks, dtype=torch.float32, device="cpu")


def test_a_call_that_does_not_fit_its_bank_is_refused() -> None:
    bank = AdapterBank(in_features=8, out_features=(4,), lora_ranks=((2,),), dtype=torch.float32, device="cpu")

    def linear(weight: Tensor, *, dtype: torch.dtype = torch.float32, adapters: int = 1) -> Tensor:
        routing = Routing.build(
            num_rows=5, segments=[Segment(first_row=0, num_rows=5, adapter=0)], scaling=[1.0] * adapters,
            dropout=[0.0] * adapters, seeds=[0] * adapters, global_batches=[0] * adapters,
        )  # fmt: skip
        return banked_linears(
            torch.zeros(5, 8, dtype=dtype), [weight.to(dtype)], [None], bank, routing=routing, targets=[0]
        )

    with pytest.raises(ValueError, match=r"weight has shape \(5, 8\), but the bank was made for 4 x 8"):
        linear(torch.zeros(5, 8))
    with pytest.raises(ValueError, match="routing has 2 adapters, but the bank 1"):
        linear(torch.zeros(4, 8), adapters=2)
    with pytest.raises(ValueError, match=r"x has dtype torch.float16 on cpu, but the bank torch.float32"):
        linear(torch.zeros(4, 8), dtype=torch.float16)
    with pytest.raises(ValueError, match=r"weight requires a gradient: .*; call requires_grad_\(False\) on it"):
        linear(torch.zeros(4, 8, requires_grad=True))


@pytest.mark.gpu
def test_a_call_of_four_owners_launches_as_much_with_64_adapters() -> None:
    from torch.profiler import ProfilerActivity, profile

    def launches(num_adapters: int) -> int:
        case = Case(
            num_rows=4096, num_features=1024, out_features=(1024,), dropout=(0.1,) * num_adapters,
            segments=tuple((1024 * a, 1024, a) for a in range(4)), lora_ranks=((16,) * num_adapters,),
        )  # fmt: skip
        values = rounded(case.inputs(), torch.bfloat16, "cuda")
        bank = bank_of(case, values, "cuda", torch.bfloat16)
        routing = case.routing("cuda")
        call(banked_linears, case, values, bank, routing)
        values["x"].grad = None
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            y = banked_linears(values["x"], values["weights"], [None], bank, routing=routing, targets=[0])
            torch.autograd.backward(y, values["dy"])
            torch.cuda.synchronize()
        return sum(event.count for event in found.key_averages() if event.key.endswith("_kernel"))

    assert 0 < launches(64) == launches(4) <= 10


@pytest.mark.gpu
def test_a_captured_call_adds_its_gradients_at_every_replay() -> None:
    case = dataclasses.replace(CASES["1, 127, 128 and 129 tokens"], dropout=(0.0,) * 4)
    values = rounded(case.inputs(), torch.bfloat16, "cuda")
    bank = bank_of(case, values, "cuda", torch.bfloat16)
    routing = case.routing("cuda")

    def both() -> Tensor:
        y = banked_linears(values["x"], values["weights"], [None], bank, routing=routing, targets=[0])
        return torch.autograd.grad(y, [values["x"]], values["dy"])[0]

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        wanted_dx = both()  # recorded outside the capture
    torch.cuda.current_stream().wait_stream(side)
    once = {name: sums.clone() for name, sums in sums_of(bank).items()}
    for adapter in range(4):
        zero_gradients([bank], adapter=adapter)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        dx = both()
    for _ in range(3):
        graph.replay()
    assert torch.equal(dx, wanted_dx)
    for name, sums in sums_of(bank).items():
        torch.testing.assert_close(sums, 3 * once[name])


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", torch.float32), pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu)]
)
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_padding_up_to_a_bucket_changes_nothing(device: str, dtype: torch.dtype, dropout: float) -> None:
    num_rows, padded = 57, 128
    case = Case(
        num_rows=padded, num_features=64, out_features=(48, 16), segments=((0, 37, 2), (37, 20, 0)),
        lora_ranks=((4, 4, 8), (4, None, 4)), dropout=(dropout, 0.0, 0.0), targets=(0, 0),
    )  # fmt: skip
    values = rounded(case.inputs(), dtype, device)
    found = []
    for bucket in (None, Bucket(num_rows=padded, most_padding=100, most_segments=4)):
        bank = bank_of(case, values, device, torch.float32 if dtype is torch.float32 else dtype)
        # An adapter without rows keeps its sums, whatever they hold.
        bank.grad_a[1], bank.grad_b[1] = float("nan"), 7.0
        count = num_rows if bucket is None else padded
        x = values["x"].detach()[:count].clone().requires_grad_()
        routing = Routing.build(
            num_rows=count,
            segments=[Segment(first_row=row, num_rows=rows, adapter=a) for row, rows, a in case.segments],
            scaling=(1.0, 2.0, 3.0), dropout=case.dropout, seeds=(1, 2, 3), global_batches=(0, 0, 0), device=device,
            bucket=bucket,
        )  # fmt: skip
        y = fused_banked_linears(x, values["weights"], values["biases"], bank, routing=routing, targets=(0, 0))
        torch.autograd.backward(y, values["dy"][:count])
        assert x.grad is not None
        found.append([y[:num_rows].detach(), x.grad[:num_rows], bank.grad_a, bank.grad_b])
    tolerance = 0.0 if dtype is torch.float32 else 2e-2
    for tight, filled in zip(*found, strict=True):
        torch.testing.assert_close(filled, tight, rtol=tolerance, atol=tolerance, equal_nan=True)
