"""Calls of the linear for the tests: float64 values that every dtype rounds from, run by either implementation."""

from dataclasses import dataclass, field

import torch

from loraplex.kernels import reference
from loraplex.kernels.routing import Routing, Segment


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

    def routing(self, device="cpu", **more):
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
            **more,
        )

    def inputs(self):
        """x, weights, biases, lora_a, lora_b and dy in float64."""
        random = torch.Generator().manual_seed(self.seed)

        def draw(*shape):
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


def rounded(values, dtype, device="cpu", adapter_dtype=None):
    """The values in `dtype`, as leaves that want gradients (the weights excepted)."""

    def cast(name, value):
        if value is None:
            return None
        if isinstance(value, list):
            return [cast(name, one) for one in value]
        value = value.to(dtype).to(adapter_dtype if adapter_dtype and name.startswith("lora") else dtype).to(device)
        return value if name in ("weights", "dy") else value.requires_grad_()

    return {name: cast(name, value) for name, value in values.items()}


def run(linears, values, *, routing, targets):
    """{name: tensor} of the output and of every gradient; a gradient that is None counts as zero."""
    y = linears(
        values["x"], values["weights"], values["biases"], values["lora_a"], values["lora_b"],
        routing=routing, targets=targets,
    )  # fmt: skip
    y.backward(values["dy"])
    found = {"y": y.detach(), "x": values["x"]}
    found |= {f"bias {t}": bias for t, bias in enumerate(values["biases"]) if bias is not None}
    for name in ("lora_a", "lora_b"):
        for t, matrices in enumerate(values[name]):
            found |= {f"{name} {t} {a}": matrix for a, matrix in enumerate(matrices) if matrix is not None}
    return {
        name: tensor if name == "y" else torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        for name, tensor in found.items()
    }


def expected(case, dtype):
    """What the reference gives in float64 on the values as `dtype` rounds them."""
    values = rounded({name: _round(value, dtype) for name, value in case.inputs().items()}, torch.float64)
    return run(reference.multi_lora_linears, values, routing=case.routing(), targets=targets_of(case))


def targets_of(case):
    return case.targets or tuple(range(len(case.out_features)))


def relative_errors(found, wanted):
    """{name: ||found - wanted|| / ||wanted||}; NaN shows as NaN."""
    return {
        name: ((found[name].cpu().double() - want).norm() / want.norm().clamp_min(1e-12)).item()
        for name, want in wanted.items()
    }


def _round(value, dtype):
    if isinstance(value, list):
        return [_round(one, dtype) for one in value]
    return None if value is None else value.to(dtype).double()
