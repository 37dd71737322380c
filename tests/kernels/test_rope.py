"""Split and rotation against transformers' own function in float64."""

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from loraplex.kernels import rope as public
from loraplex.kernels.rope_kernel import fused_split_and_rotate

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SHAPES = {"D 64": (7, 4, 2, 64), "D 80": (3, 5, 1, 80), "D 128": (2, 32, 8, 128), "no grouping": (5, 3, 3, 8)}
"""T, Hq, Hkv, D."""


def draw(*shape: int, dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype).to(device)


def angles(num_tokens: int, d: int, device: str) -> tuple[Tensor, Tensor]:
    """Cosines and sines whose halves differ, so that mixing them up shows (transformers' own halves are equal)."""
    angle = torch.rand(num_tokens, d, generator=torch.Generator().manual_seed(9)).to(device) * 6
    return angle.cos(), angle.sin()


def truth(qkv: Tensor, cos: Tensor, sin: Tensor, hq: int, hkv: int) -> list[Tensor]:
    d = cos.shape[1]
    q, k, v = torch.split(qkv, [hq * d, hkv * d, hkv * d], dim=1)
    q, k = apply_rotary_pos_emb(q.view(-1, hq, d), k.view(-1, hkv, d), cos, sin, unsqueeze_dim=1)
    return [q, k, v.view(-1, hkv, d)]


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
@pytest.mark.parametrize("name", SHAPES)
def test_values_and_gradients_are_those_of_transformers(name: str, dtype: torch.dtype, device: str) -> None:
    num_tokens, hq, hkv, d = SHAPES[name]
    qkv = draw(num_tokens, (hq + 2 * hkv) * d, dtype=dtype, device=device).requires_grad_()
    cos, sin = angles(num_tokens, d, device)
    grads = [draw(num_tokens, h, d, dtype=dtype, device=device, seed=h + 1) for h in (hq, hkv, hkv)]
    found = fused_split_and_rotate(qkv, cos, sin, num_heads=hq, num_kv_heads=hkv)
    torch.autograd.backward(found, grads)
    wide = qkv.detach().double().requires_grad_()
    wanted = truth(wide, cos.double(), sin.double(), hq, hkv)
    torch.autograd.backward(wanted, [grad.double() for grad in grads])
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == dtype
        assert one.is_contiguous()
        assert (one - other).norm() / other.norm() < TOLERANCE[dtype]
    assert torch.equal(found[2].double(), wanted[2])
    assert qkv.grad is not None
    assert wide.grad is not None
    assert (qkv.grad - wide.grad).norm() / wide.grad.norm() < TOLERANCE[dtype]


def test_any_strides_of_inputs_and_gradients(device: str) -> None:
    qkv = draw(6, 4 * 16, dtype=torch.float32, device=device)
    cos, sin = angles(6, 16, device)
    heads_first = [draw(h, 6, 16, dtype=torch.float32, device=device, seed=h).transpose(0, 1) for h in (2, 1, 1)]
    transposed = [grad.transpose(0, 2).contiguous().transpose(0, 2) for grad in heads_first]

    def run(qkv: Tensor, cos: Tensor, sin: Tensor, grads: list[Tensor]) -> list[Tensor]:
        qkv = qkv.detach().requires_grad_()
        out = fused_split_and_rotate(qkv, cos, sin, num_heads=2, num_kv_heads=1)
        return [*out, *torch.autograd.grad(out, qkv, grads)]

    wanted = run(qkv, cos, sin, [grad.contiguous() for grad in heads_first])
    wide = torch.full((6, 100), float("nan"), device=device)
    wide[:, 4:68] = qkv
    found = run(wide[:, 4:68], cos.t().contiguous().t(), sin.repeat(1, 2)[:, :16], heads_first)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(run(qkv, cos, sin, transposed), wanted, strict=True))


def test_an_output_that_nobody_uses_gives_zero(device: str) -> None:
    qkv = draw(3, 4 * 16, dtype=torch.float32, device=device).requires_grad_()
    cos, sin = angles(3, 16, device)
    q, _, _ = fused_split_and_rotate(qkv, cos, sin, num_heads=2, num_kv_heads=1)
    torch.autograd.backward(q.sum())
    assert qkv.grad is not None
    assert not qkv.grad[:, 32:].any()
    assert qkv.grad[:, :32].any()


def test_no_tokens_give_no_heads(device: str) -> None:
    qkv = torch.zeros(0, 64, device=device).requires_grad_()
    cos, sin = angles(0, 16, device)
    q, k, v = fused_split_and_rotate(qkv, cos, sin, num_heads=2, num_kv_heads=1)
    assert [tuple(t.shape) for t in (q, k, v)] == [(0, 2, 16), (0, 1, 16), (0, 1, 16)]
    assert torch.autograd.grad(q.sum(), qkv)[0].shape == (0, 64)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["qkv", "dq"])
def test_nan_stays_in_its_row(where: str, poison: float, device: str) -> None:
    cos, sin = angles(9, 16, device)

    def run(spoil: bool) -> list[Tensor]:
        values = {
            "qkv": draw(9, 64, dtype=torch.float32, device=device),
            "dq": draw(9, 2, 16, dtype=torch.float32, device=device, seed=1),
        }
        if spoil:
            values[where][5] = poison
        qkv = values["qkv"].requires_grad_()
        out = fused_split_and_rotate(qkv, cos, sin, num_heads=2, num_kv_heads=1)
        return [*out, *torch.autograd.grad(out[0], qkv, values["dq"])]

    others = torch.arange(9) != 5
    assert all(torch.equal(a[others], b[others]) for a, b in zip(run(True), run(False), strict=True))


def test_the_plain_version_is_transformers_and_differentiable_in_float64() -> None:
    qkv = draw(5, 5 * 8, dtype=torch.float64, device="cpu").requires_grad_()
    cos, sin = (angle.double() for angle in angles(5, 8, "cpu"))

    def rotate(qkv: Tensor) -> tuple[Tensor, ...]:
        return public.split_and_rotate(qkv, cos, sin, num_heads=3, num_kv_heads=1)

    assert all(torch.equal(a, b) for a, b in zip(rotate(qkv), truth(qkv, cos, sin, 3, 1), strict=True))
    assert torch.autograd.gradcheck(rotate, [qkv])


def test_arguments_that_do_not_fit_are_refused() -> None:
    cos = torch.zeros(3, 8)
    with pytest.raises(
        ValueError, match=r"qkv has shape \(3, 40\): 3 tokens with 2 \+ 2 x 1 heads of 8 make \[3, 32\]"
    ):
        public.split_and_rotate(torch.zeros(3, 40), cos, cos, num_heads=2, num_kv_heads=1)
    with pytest.raises(ValueError, match=r"cos has shape \(3, 7\).*D even"):
        public.split_and_rotate(torch.zeros(3, 28), cos[:, :7], cos[:, :7], num_heads=2, num_kv_heads=1)
    with pytest.raises(ValueError, match="num_kv_heads 0: give at least 1"):
        public.split_and_rotate(torch.zeros(3, 16), cos, cos, num_heads=2, num_kv_heads=0)
