"""Calls of the linear for the tests: float64 values that every dtype rounds from, run by either implementation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypedDict, TypeVar

import torch
from torch import Tensor

from loraplex.kernels import reference
from loraplex.kernels.nf4 import Nf4Weight
from loraplex.kernels.routing import Routing, Segment, WantedTables

Weight = TypeVar("Weight", Tensor, Nf4Weight)


class Values(TypedDict, Generic[Weight]):
    """The tensors of one call; `lora_a[t][a]` is adapter a's matrix for target t."""

    x: Tensor
    weights: list[Weight]
    biases: list[Tensor | None]
    lora_a: list[list[Tensor | None]]
    lora_b: list[list[Tensor | None]]
    dy: Tensor


@dataclass(frozen=True, kw_only=True)
class Case:
    """Segments are (first row, rows, adapter); `lora_ranks[t][a]` is None where adapter a lacks target t."""

    num_rows: int
    num_features: int
    out_features: tuple[int, ...]
    segments: tuple[tuple[int, int, int], ...]
    lora_ranks: tuple[tuple[int | None, ...], ...]
    dropout: tuple[float, ...]
    targets: tuple[int, ...] = ()
    bias: bool = False
    seed: int = 0
    scaling: tuple[float, ...] = field(default=())

    def routing(self, device: str = "cpu", wanted: WantedTables | None = None) -> Routing:
        count = len(self.dropout)
        return Routing.build(
            num_rows=self.num_rows,
            segments=[Segment(first_row=first, num_rows=rows, adapter=a) for first, rows, a in self.segments],
            scaling=self.scaling or [0.5 + 0.25 * a for a in range(count)],
            dropout=self.dropout,
            seeds=range(count),
            global_batches=[3] * count,
            token_index=[(7 * row) % 1009 for row in range(self.num_rows)],
            device=device,
            wanted=wanted,
        )

    def inputs(self) -> Values[Tensor]:
        """x, weights, biases, lora_a, lora_b and dy in float64."""
        random = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, dtype=torch.float64)

        k = self.num_features
        return {
            "x": draw(self.num_rows, k),
            "weights": [draw(n, k) / k**0.5 for n in self.out_features],
            "biases": [draw(n) if self.bias else None for n in self.out_features],
            "lora_a": [[None if r is None else draw(r, k) / k**0.5 for r in ranks] for ranks in self.lora_ranks],
            "lora_b": [
                [None if r is None else draw(n, r) for r in ranks]
                for n, ranks in zip(self.out_features, self.lora_ranks, strict=True)
            ],
            "dy": draw(self.num_rows, sum(self.out_features)),
        }


def rounded(
    values: Values[Tensor], dtype: torch.dtype, device: str = "cpu", adapter_dtype: torch.dtype | None = None
) -> Values[Tensor]:
    """The values in `dtype`, as leaves that want gradients (the weights excepted)."""

    def cast(name: str, value: Tensor) -> Tensor:
        value = value.to(dtype).to(adapter_dtype if adapter_dtype and name.startswith("lora") else dtype).to(device)
        return value if name in ("weights", "dy") else value.requires_grad_()

    return _changed(values, cast)


def run(
    linears: Callable[..., Tensor], values: Values[Weight], *, routing: Routing, targets: Sequence[int]
) -> dict[str, Tensor]:
    """{name: tensor} of the output and of every gradient; a gradient that is None counts as zero."""
    y = linears(
        values["x"], values["weights"], values["biases"], values["lora_a"], values["lora_b"],
        routing=routing, targets=targets,
    )  # fmt: skip
    torch.autograd.backward(y, values["dy"])
    found = {"y": y.detach(), "x": values["x"]}
    found |= {f"bias {t}": bias for t, bias in enumerate(values["biases"]) if bias is not None}
    for name, per_target in (("lora_a", values["lora_a"]), ("lora_b", values["lora_b"])):
        for t, matrices in enumerate(per_target):
            found |= {f"{name} {t} {a}": matrix for a, matrix in enumerate(matrices) if matrix is not None}
    return {
        name: tensor if name == "y" else torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        for name, tensor in found.items()
    }


def expected(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """What the reference gives in float64 on the values as `dtype` rounds them."""
    values = rounded(_changed(case.inputs(), lambda _, value: value.to(dtype).double()), torch.float64)
    return run(reference.multi_lora_linears, values, routing=case.routing(), targets=targets_of(case))


def targets_of(case: Case) -> tuple[int, ...]:
    return case.targets or tuple(range(len(case.out_features)))


def relative_errors(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """{name: ||found - wanted|| / ||wanted||}; NaN shows as NaN."""
    return {
        name: ((found[name].cpu().double() - want).norm() / want.norm().clamp_min(1e-12)).item()
        for name, want in wanted.items()
    }


def _changed(values: Values[Tensor], change: Callable[[str, Tensor], Tensor]) -> Values[Tensor]:
    """The values with every tensor replaced by what `change` makes of its name and it."""

    def each(name: str, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [None if tensor is None else change(name, tensor) for tensor in tensors]

    return {
        "x": change("x", values["x"]),
        "weights": [change("weights", weight) for weight in values["weights"]],
        "biases": each("biases", values["biases"]),
        "lora_a": [each("lora_a", matrices) for matrices in values["lora_a"]],
        "lora_b": [each("lora_b", matrices) for matrices in values["lora_b"]],
        "dy": change("dy", values["dy"]),
    }
