"""SwiGLU against silu(gate) * up in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from loraplex.kernels import swiglu as public
from loraplex.kernels.swiglu_kernel import fused_swiglu

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def draw(*shape: int, dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype).to(device)


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
@pytest.mark.parametrize("size", [1, 24, 100, 2048, 2500])
def test_values_and_gradients_are_the_formulas(size: int, dtype: torch.dtype, device: str) -> None:
    gate_up = draw(5, 2 * size, dtype=dtype, device=device).mul_(3).requires_grad_()
    dy = draw(5, size, dtype=dtype, device=device, seed=1)
    y = fused_swiglu(gate_up)
    torch.autograd.backward(y, dy)
    wide = gate_up.detach().double().requires_grad_()
    wanted = silu(wide[:, :size]) * wide[:, size:]
    torch.autograd.backward(wanted, dy.double())
    assert y.dtype == dtype
    assert (y - wanted).norm() / wanted.norm() < TOLERANCE[dtype]
    assert gate_up.grad is not None
    assert wide.grad is not None
    assert (gate_up.grad - wide.grad).norm() / wide.grad.norm() < TOLERANCE[dtype]


def test_large_gates_neither_overflow_nor_vanish(device: str) -> None:
    gate_up = torch.tensor([[1e4, -1e4, 90.0, -90.0, 2.0, 2.0, 2.0, 2.0]], device=device).requires_grad_()
    y = fused_swiglu(gate_up)
    torch.autograd.backward(y.sum())
    torch.testing.assert_close(y.detach().cpu(), torch.tensor([[2e4, 0.0, 180.0, 0.0]]))
    assert gate_up.grad is not None
    torch.testing.assert_close(
        gate_up.grad.cpu(), torch.tensor([[2.0, 0.0, 2.0, 0.0, 1e4, 0.0, 90.0, 0.0]]), atol=1e-30, rtol=1e-6
    )


def test_any_strides(device: str) -> None:
    dense = draw(6, 80, dtype=torch.float32, device=device)
    wide = torch.full((6, 100), float("nan"), device=device)
    wide[:, :80] = dense
    dy = draw(40, 6, dtype=torch.float32, device=device, seed=1).t()

    def run(gate_up: Tensor) -> tuple[Tensor, Tensor]:
        gate_up = gate_up.detach().requires_grad_()
        y = fused_swiglu(gate_up)
        return y, torch.autograd.grad(y, gate_up, dy)[0]

    wanted = run(dense)
    for gate_up in (wide[:, :80], dense.t().contiguous().t()):
        assert all(torch.equal(found, want) for found, want in zip(run(gate_up), wanted, strict=True))


def test_no_rows_give_no_rows(device: str) -> None:
    gate_up = torch.zeros(0, 64, device=device).requires_grad_()
    y = fused_swiglu(gate_up)
    torch.autograd.backward(y.sum())
    assert y.shape == (0, 32)
    assert gate_up.grad is not None
    assert gate_up.grad.shape == (0, 64)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["gate_up", "dy"])
def test_nan_stays_in_its_row(where: str, poison: float, device: str) -> None:
    def run(spoil: bool) -> tuple[Tensor, Tensor]:
        values = {
            "gate_up": draw(9, 80, dtype=torch.float32, device=device),
            "dy": draw(9, 40, dtype=torch.float32, device=device, seed=1),
        }
        if spoil:
            values[where][5] = poison
        gate_up = values["gate_up"].requires_grad_()
        y = fused_swiglu(gate_up)
        return y, torch.autograd.grad(y, gate_up, values["dy"])[0]

    others = torch.arange(9) != 5
    assert all(torch.equal(a[others], b[others]) for a, b in zip(run(True), run(False), strict=True))


def test_the_plain_version_is_differentiable_in_float64() -> None:
    gate_up = draw(3, 8, dtype=torch.float64, device="cpu").requires_grad_()
    assert torch.autograd.gradcheck(public.swiglu, [gate_up])


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gate_up has shape \(3, 7\): give \[T, 2 I\]"):
        public.swiglu(torch.zeros(3, 7))
    with pytest.raises(ValueError, match=r"dtype torch.int64: give a floating dtype"):
        public.swiglu(torch.zeros(3, 8, dtype=torch.int64))
