"""RMSNorm against transformers' own module in float64, alone and behind the residual addition."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from loraplex.kernels import rms_norm as public
from loraplex.kernels.rms_norm_kernel import fused_add_rms_norm, fused_rms_norm

EPS = 1e-5
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
DTYPES = [
    ("cpu", torch.float32),
    ("cpu", torch.float16),
    *(pytest.param("cuda", dtype, marks=pytest.mark.gpu) for dtype in TOLERANCE),
]
SHAPES = [(5, 64), (1, 5), (37, 80), (3, 1000), (2, 3, 5, 128), (130, 96), (0, 64)]


def draw(*shape: int, dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype).to(device)


def truth(weight: Tensor) -> LlamaRMSNorm:
    """transformers' module computes in float32 whatever it gets, so it judges to that."""
    module = LlamaRMSNorm(weight.shape[0], eps=EPS).to(weight.device)
    module.weight = torch.nn.Parameter(weight.detach().float(), requires_grad=False)
    return module


def error(found: Tensor | None, wanted: Tensor | None) -> float:
    assert found is not None
    assert wanted is not None
    return float(
        (found.detach().double() - wanted.detach().double()).norm() / wanted.detach().double().norm().clamp_min(1e-12)
    )


@pytest.mark.parametrize(("device", "dtype"), DTYPES, indirect=["device"], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_transformers(
    shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    x, dy = (draw(*shape, dtype=dtype, device=device, seed=seed) for seed in (0, 1))
    weight = draw(shape[-1], dtype=dtype, device=device, seed=2)
    x.requires_grad_()
    y = fused_rms_norm(x, weight, eps=EPS)
    torch.autograd.backward(y, dy)
    wide = x.detach().float().requires_grad_()
    wanted = truth(weight)(wide)
    torch.autograd.backward(wanted, dy.float())
    assert (y.dtype, y.shape) == (dtype, shape)
    assert error(y, wanted) < TOLERANCE[dtype]
    assert error(x.grad, wide.grad) < TOLERANCE[dtype]


@pytest.mark.parametrize(("device", "dtype"), DTYPES, indirect=["device"], ids=str)
@pytest.mark.parametrize("through", ["both", "normed", "summed"])
def test_the_fused_addition_passes_on_what_arrives_through_either_output(
    through: str, dtype: torch.dtype, device: str
) -> None:
    x, residual, dy, dsummed = (draw(37, 80, dtype=dtype, device=device, seed=seed) for seed in range(4))
    weight = draw(80, dtype=dtype, device=device, seed=4)
    x.requires_grad_()
    residual.requires_grad_()
    y, summed = fused_add_rms_norm(x, residual, weight, eps=EPS)
    assert torch.equal(summed, x + residual)
    wide = summed.detach().float().requires_grad_()
    wanted = truth(weight)(wide)
    assert error(y, wanted) < TOLERANCE[dtype]
    pairs = {"both": ([y, summed], [dy, dsummed]), "normed": ([y], [dy]), "summed": ([summed], [dsummed])}[through]
    torch.autograd.backward(*pairs)
    torch.autograd.backward(
        [wanted, wide], [dy.float() * (through != "summed"), dsummed.float() * (through != "normed")]
    )
    assert error(x.grad, wide.grad) < TOLERANCE[dtype]
    assert x.grad is not None
    assert residual.grad is not None
    assert torch.equal(x.grad, residual.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_half_precision_is_rounded_where_transformers_rounds(dtype: torch.dtype, device: str) -> None:
    x, weight = draw(50, 64, dtype=dtype, device=device), draw(64, dtype=dtype, device=device, seed=1)
    module = LlamaRMSNorm(64, eps=EPS).to(device)
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    assert torch.equal(public.reference_rms_norm(x, weight, eps=EPS), module(x))
    # the sum over a row runs in another order, so that a value in a thousand may round the other way
    off = fused_rms_norm(x, weight, eps=EPS) != module(x)
    assert dtype == torch.float32 or off.float().mean().item() < 0.01


def test_heads_inside_a_joint_projection_need_no_copy(device: str) -> None:
    joint = torch.full((7, 6 * 16), float("nan"), device=device)
    heads = joint[:, 16:80].view(7, 4, 16)
    heads.copy_(draw(7, 4, 16, dtype=torch.float32, device=device))
    weight = draw(16, dtype=torch.float32, device=device, seed=1)
    joint.requires_grad_()
    y = fused_rms_norm(joint[:, 16:80].view(7, 4, 16), weight, eps=EPS)
    assert y.is_contiguous()
    dense = heads.detach().contiguous().requires_grad_()
    wanted = fused_rms_norm(dense, weight, eps=EPS)
    assert torch.equal(y, wanted)
    dy = draw(4, 7, 16, dtype=torch.float32, device=device, seed=2).transpose(0, 1)
    torch.autograd.backward(y, dy)
    torch.autograd.backward(wanted, dy.contiguous())
    assert joint.grad is not None
    assert dense.grad is not None
    assert torch.equal(joint.grad[:, 16:80].view(7, 4, 16), dense.grad)


def test_a_gradient_that_is_one_number_everywhere_arrives(device: str) -> None:
    x = draw(4, 32, dtype=torch.float32, device=device).requires_grad_()
    weight = draw(32, dtype=torch.float32, device=device, seed=1)
    torch.autograd.backward(fused_rms_norm(x, weight, eps=EPS).sum())
    wide = x.detach().clone().requires_grad_()
    torch.autograd.backward(truth(weight)(wide).sum())
    assert error(x.grad, wide.grad) < 5e-6


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["x", "dy"])
def test_nan_stays_in_its_row(where: str, poison: float, device: str) -> None:
    def run(spoil: bool) -> tuple[Tensor, Tensor, Tensor]:
        values = {name: draw(37, 80, dtype=torch.float32, device=device, seed=i) for i, name in enumerate(("x", "dy"))}
        if spoil:
            values[where][5] = poison
        x = values["x"].requires_grad_()
        y, summed = fused_add_rms_norm(x, torch.ones_like(x), torch.ones(80, device=device), eps=EPS)
        torch.autograd.backward([y, summed], [values["dy"], values["dy"]])
        assert x.grad is not None
        return y.detach(), summed.detach(), x.grad

    others = torch.arange(37) != 5
    assert all(torch.equal(a[others], b[others]) for a, b in zip(run(True), run(False), strict=True))


def test_only_input_and_one_number_a_row_are_saved(device: str) -> None:
    x = draw(6, 5, 64, dtype=torch.float16, device=device).requires_grad_()
    saved: list[tuple[torch.dtype, tuple[int, ...]]] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append((tensor.dtype, tuple(tensor.shape)))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        fused_rms_norm(x, torch.ones(64, dtype=torch.float16, device=device), eps=EPS)
    assert saved == [(torch.float16, (6, 5, 64)), (torch.float16, (64,)), (torch.float32, (30,))]


def test_the_plain_version_is_differentiable_in_float64() -> None:
    x, residual = (draw(3, 4, 8, dtype=torch.float64, device="cpu", seed=i).requires_grad_() for i in (0, 1))
    weight = draw(8, dtype=torch.float64, device="cpu", seed=2)
    given: dict[str, Any] = {"eps": EPS, "inside": torch.float64}
    assert torch.autograd.gradcheck(lambda x: public.reference_rms_norm(x, weight, **given), [x])
    assert torch.autograd.gradcheck(lambda x, r: public.reference_add_rms_norm(x, r, weight, **given), [x, residual])


def test_arguments_that_do_not_fit_are_refused() -> None:
    x, weight = torch.zeros(3, 8), torch.zeros(8)
    with pytest.raises(ValueError, match=r"x has shape \(3, 8\) and weight \(7,\): give x \[..., H\] and weight \[H\]"):
        public.rms_norm(x, torch.zeros(7), eps=EPS)
    with pytest.raises(ValueError, match=r"weight torch.float64: give one floating dtype"):
        public.rms_norm(x, weight.double(), eps=EPS)
    with pytest.raises(ValueError, match=r"frozen here; call requires_grad_\(False\)"):
        public.rms_norm(x, torch.nn.Parameter(weight), eps=EPS)
    with pytest.raises(ValueError, match=r"residual is torch.float32 \(2, 8\).*one shape, dtype and device"):
        public.add_rms_norm(x, torch.zeros(2, 8), weight, eps=EPS)
