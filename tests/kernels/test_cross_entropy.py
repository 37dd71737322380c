"""Chunked losses against torch's cross-entropy of the whole logits in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from loraplex.kernels import cross_entropy as public
from loraplex.kernels.cross_entropy import default_chunk_rows, target_losses

TOLERANCE = {torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
DTYPES = [
    ("cpu", torch.float32),
    ("cpu", torch.float16),
    *(pytest.param("cuda", dtype, marks=pytest.mark.gpu) for dtype in TOLERANCE),
]


@pytest.fixture(autouse=True)
def kernels_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted on the CPU too; float64 stays with the plain version."""
    monkeypatch.setattr(public, "runs_kernels", lambda x: x.dtype != torch.float64)


class Case:
    """Rows of hidden states, a head, targets and weights, rounded to a dtype."""

    def __init__(
        self, n: int, num_words: int, *, dtype: torch.dtype, device: str, h: int = 24, scale: float = 1.0
    ) -> None:
        random = torch.Generator().manual_seed(n + num_words)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, dtype=torch.float64)

        self.hidden = draw(n, h).to(dtype).to(device).requires_grad_()
        self.head = (draw(num_words, h) * scale / h**0.5).to(dtype).to(device)
        self.targets = torch.randint(num_words, (n,), generator=random).to(device)
        self.weights = draw(n).abs().float().to(device)
        self.grad = draw(n).float().to(device)

    def run(self, *, chunk_rows: int | None = None) -> tuple[Tensor, Tensor]:
        """(losses, gradient of the hidden states)."""
        losses = target_losses(self.hidden, self.head, self.targets, self.weights, chunk_rows=chunk_rows)
        (gradient,) = torch.autograd.grad(losses, self.hidden, self.grad.to(losses.dtype))
        return losses.detach(), gradient

    def wanted(self) -> tuple[Tensor, Tensor]:
        hidden = self.hidden.detach().double().requires_grad_()
        losses = cross_entropy(hidden @ self.head.double().t(), self.targets, reduction="none") * self.weights
        (gradient,) = torch.autograd.grad(losses, hidden, self.grad.double())
        return losses.detach(), gradient


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm().clamp_min(1e-12))


@pytest.mark.parametrize(("device", "dtype"), DTYPES, indirect=["device"], ids=str)
@pytest.mark.parametrize(("n", "num_words"), [(1, 1), (5, 17), (7, 1000), (3, 9001)])
def test_losses_and_gradients_are_those_of_the_whole_logits(
    n: int, num_words: int, dtype: torch.dtype, device: str
) -> None:
    case = Case(n, num_words, dtype=dtype, device=device)
    (losses, gradient), (wanted, wanted_gradient) = case.run(), case.wanted()
    assert (losses.dtype, gradient.dtype) == (torch.float32, dtype)
    assert error(losses, wanted) < TOLERANCE[dtype]
    assert error(gradient, wanted_gradient) < TOLERANCE[dtype]


@pytest.mark.parametrize("chunk_rows", [1, 3, 10, 11, 64])
def test_chunks_change_nothing(chunk_rows: int, device: str) -> None:
    case = Case(10, 50, dtype=torch.float32, device=device)
    for found, wanted in zip(case.run(chunk_rows=chunk_rows), case.wanted(), strict=True):
        assert error(found, wanted) < 3e-6


def test_float64_is_exact() -> None:
    case = Case(10, 50, dtype=torch.float64, device="cpu")
    for found, wanted in zip(case.run(chunk_rows=4), case.wanted(), strict=True):
        assert found.dtype == torch.float64
        assert error(found, wanted) < 1e-14


def test_the_plain_version_is_differentiable() -> None:
    case = Case(5, 13, dtype=torch.float64, device="cpu")
    weights = case.weights.double()
    assert torch.autograd.gradcheck(
        lambda hidden: target_losses(hidden, case.head, case.targets, weights, chunk_rows=2), [case.hidden]
    )


@pytest.mark.parametrize(("device", "dtype"), DTYPES, indirect=["device"], ids=str)
def test_the_plain_version_of_a_chunk_is_the_kernel(dtype: torch.dtype, device: str) -> None:
    case = Case(6, 100, dtype=dtype, device=device)
    logits = (case.hidden @ case.head.t()).detach()
    other = logits.clone()
    losses, other_losses = torch.empty(6, device=device), torch.empty(6, device=device)
    public.reference_chunk_losses(logits, case.targets, losses, gradient=True)
    from loraplex.kernels.cross_entropy_kernel import fused_chunk_losses

    fused_chunk_losses(other, case.targets, other_losses, gradient=True)
    torch.testing.assert_close(other_losses, losses)
    torch.testing.assert_close(other, logits)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_logits_neither_overflow_nor_lose_the_target(size: float, device: str) -> None:
    hidden = torch.eye(3, device=device).requires_grad_()
    head = torch.tensor([[size, 1.0, 0.0], [-size, 0.0, 0.0], [0.0, size, 0.0], [5.0, size, 2.0]], device=device)
    targets, weights = torch.tensor([1, 2, 0], device=device), torch.ones(3, device=device)
    losses = target_losses(hidden, head, targets, weights)
    (gradient,) = torch.autograd.grad(losses.sum(), hidden)
    wide = hidden.detach().double().requires_grad_()
    wanted = cross_entropy(wide @ head.double().t(), targets, reduction="none")
    (wanted_gradient,) = torch.autograd.grad(wanted.sum(), wide)
    torch.testing.assert_close(losses.double(), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_stays_in_its_row(poison: float, device: str) -> None:
    clean = Case(9, 40, dtype=torch.float32, device=device)
    spoiled = Case(9, 40, dtype=torch.float32, device=device)
    with torch.no_grad():
        spoiled.hidden[5] = poison
    others = torch.arange(9) != 5
    for found, wanted in zip(spoiled.run(chunk_rows=7), clean.run(chunk_rows=7), strict=True):
        assert torch.equal(found[others], wanted[others])
        assert not torch.isfinite(found[5]).any()


def test_small_weights_cost_half_precision_nothing(device: str) -> None:
    case = Case(6, 2000, dtype=torch.float16, device=device)
    case.weights.mul_(1e-4)
    (_, gradient), (_, wanted) = case.run(), case.wanted()
    assert gradient.abs().max() > 1e-6
    # what is left is the rounding of fp16's own small numbers: 6e-8 in steps
    assert (gradient.double() - wanted).abs().max() < 1e-7


def test_no_rows_give_no_losses(device: str) -> None:
    case = Case(0, 40, dtype=torch.float32, device=device)
    losses, gradient = case.run()
    assert (losses.shape, gradient.shape) == ((0,), (0, 24))


def test_without_gradients_the_head_is_multiplied_once(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(10, 50, dtype=torch.float32, device=device)
    mm, products = torch.mm, []

    def counting(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        products.append(tuple(out.shape))
        return mm(a, b, out=out)

    monkeypatch.setattr(torch, "mm", counting)
    with torch.no_grad():
        losses = target_losses(case.hidden, case.head, case.targets, case.weights, chunk_rows=6)
    assert products == [(6, 50), (4, 50)]
    assert not losses.requires_grad
    assert error(losses, case.wanted()[0]) < 3e-6


def test_only_the_gradient_and_the_weights_are_saved(device: str) -> None:
    case = Case(10, 50, dtype=torch.float16, device=device)
    saved: list[tuple[torch.dtype, tuple[int, ...]]] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append((tensor.dtype, tuple(tensor.shape)))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        target_losses(case.hidden, case.head, case.targets, case.weights)
    assert saved == [(torch.float16, (10, 24)), (torch.float32, (10,))]


@pytest.mark.parametrize(("n", "rows"), [(0, 128), (1, 128), (1500, 1536), (1600, 896), (8192, 1408)])
def test_chunks_are_of_one_size_and_at_most_the_limit(n: int, rows: int) -> None:
    hidden = torch.empty(n, 8, dtype=torch.bfloat16, device="meta")
    assert default_chunk_rows(hidden, num_words=128_256) == rows
    assert rows * 128_256 * 2 <= 1.05 * public.CHUNK_BYTES


@pytest.mark.gpu
def test_an_id_outside_of_the_vocabulary_is_nan_on_a_gpu() -> None:
    case = Case(3, 40, dtype=torch.float32, device="cuda")
    case.targets[1] = 40
    losses = target_losses(case.hidden, case.head, case.targets, case.weights)
    assert losses.isfinite().tolist() == [True, False, True]


@pytest.mark.gpu
def test_memory_stays_near_a_chunk() -> None:
    case = Case(4096, 128_256, dtype=torch.bfloat16, device="cuda", h=256)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    case.run()
    assert torch.cuda.max_memory_allocated() - before < 1.2 * public.CHUNK_BYTES


def test_arguments_that_do_not_fit_are_refused() -> None:
    hidden, head = torch.zeros(3, 8), torch.zeros(5, 8)
    targets, weights = torch.zeros(3, dtype=torch.int64), torch.ones(3)
    with pytest.raises(ValueError, match=r"head_weight \(5, 7\): give \[n, H\] and \[V, H\]"):
        target_losses(hidden, head[:, :7], targets, weights)
    with pytest.raises(ValueError, match=r"head_weight torch.float16: give one floating dtype"):
        target_losses(hidden, head.half(), targets, weights)
    with pytest.raises(ValueError, match=r"target_ids is torch.int64 \(2,\): give int64 \[3\]"):
        target_losses(hidden, head, targets[:2], weights)
    with pytest.raises(ValueError, match=r"row_weights is torch.float64 \(3,\): give float32 \[3\]"):
        target_losses(hidden, head, targets, weights.double())
    with pytest.raises(ValueError, match="chunk_rows is 0: give at least 1"):
        target_losses(hidden, head, targets, weights, chunk_rows=0)
    with pytest.raises(ValueError, match="head_weight requires a gradient: base weights are frozen"):
        target_losses(hidden, torch.nn.Parameter(head), targets, weights)
