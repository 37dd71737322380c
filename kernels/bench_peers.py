"""What the fused linear is measured against, all in one process and on the same data."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .bank import AdapterBank, banked_linears
from .bench_report import row_name, shape_name
from .multi_lora import multi_lora_linears
from .routing import Routing, Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the grid."""

    linear: str
    T: int
    K: int
    N: tuple[int, ...]
    """One entry for each linear that shares the input: q/k/v and gate/up are measured as one call."""
    r: int
    num_adapters: int
    dropout: float
    direction: str
    """`forward`, or `both` for forward and backward."""
    cuda_graph: bool
    goal: bool
    """Whether the row counts towards the goal of 1.05 (with CUDA graphs) or is reported beside it."""
    compiled: bool
    """Whether `torch.compile`d LoRA is measured too."""

    def name(self) -> str:
        """As its record is called."""
        return row_name(asdict(self))

    def shape_name(self) -> str:
        """As its profile is called, with or without a graph."""
        return shape_name(asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Tensors of one row; two inputs and two gradients in turn, so that no pass finds the last one's data in cache."""

    x: tuple[Tensor, ...]
    dy: tuple[Tensor, ...]
    weight: Tensor
    """The weights of all linears, one after another."""
    lora_a: tuple[tuple[Tensor, ...], ...]
    lora_b: tuple[tuple[Tensor, ...], ...]
    routing: Routing


def make_data(row: Row, device: torch.device) -> Data:
    """Random bf16 data (zeros run faster), PEFT's scales, B not zero."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16, generator=generator).mul_(scale)

    adapters = range(row.num_adapters)
    return Data(
        x=tuple(draw(row.T, row.K).requires_grad_() for _ in range(2)),
        dy=tuple(draw(row.T, sum(row.N)) for _ in range(2)),
        weight=draw(sum(row.N), row.K, scale=row.K**-0.5),
        lora_a=tuple(tuple(draw(row.r, row.K, scale=row.K**-0.5).requires_grad_() for _ in adapters) for _ in row.N),
        lora_b=tuple(tuple(draw(n, row.r, scale=0.1).requires_grad_() for _ in adapters) for n in row.N),
        routing=Routing.build(
            num_rows=row.T,
            segments=[
                Segment(first_row=first, num_rows=rows, adapter=adapter)
                for adapter, (first, rows) in enumerate(segment_rows(row.T, row.num_adapters))
            ],
            scaling=[2.0] * row.num_adapters,
            dropout=[row.dropout] * row.num_adapters,
            seeds=list(adapters),
            global_batches=[0] * row.num_adapters,
            device=device,
        ),
    )


def segment_rows(num_rows: int, num_adapters: int) -> list[tuple[int, int]]:
    """(first row, rows) of ragged segments, none of whose borders is a multiple of 128."""
    if num_adapters == 1:
        return [(0, num_rows)]
    shifts = (37, -83, 51)
    ends = [num_rows * (a + 1) // num_adapters + shifts[a % 3] for a in range(num_adapters - 1)]
    ends.append(num_rows)
    return [(first, end - first) for first, end in zip([0, *ends], ends, strict=False)]


Linear = Callable[[Tensor], Tensor]


def frozen(data: Data, row: Row) -> Linear:
    """The base model's product alone, all linears as one GEMM."""
    return lambda x: functional.linear(x, data.weight)


def ours(data: Data, row: Row) -> Linear:
    """The fused linear on adapters that stay packed, as the engine runs it; gradients go into the bank's sums.

    The linears of one call share one dropout mask.
    """
    weights = torch.split(data.weight, list(row.N))
    biases, targets = [None] * len(row.N), [0] * len(row.N)
    bank = bank_of(data, row)
    return lambda x: banked_linears(x, weights, biases, bank, routing=data.routing, targets=targets)


def bank_of(data: Data, row: Row) -> AdapterBank:
    """The row's adapters, packed."""
    bank = AdapterBank(
        in_features=row.K, out_features=row.N, lora_ranks=[[row.r] * row.num_adapters] * len(row.N),
        dtype=data.weight.dtype, device=data.weight.device,
    )  # fmt: skip
    for target in range(len(row.N)):
        for adapter in range(row.num_adapters):
            views = bank.matrices(target=target, adapter=adapter)
            if views is not None:
                views.a.copy_(data.lora_a[target][adapter].detach())
                views.b.copy_(data.lora_b[target][adapter].detach())
    return bank


def lists(data: Data, row: Row) -> Linear:
    """The fused linear on a list of matrices, packed in every call and each given its own gradient."""
    weights = torch.split(data.weight, list(row.N))

    def forward(x: Tensor) -> Tensor:
        return multi_lora_linears(
            x, weights, [None] * len(row.N), data.lora_a, data.lora_b, routing=data.routing, targets=[0] * len(row.N)
        )

    return forward


def unsloth(data: Data, row: Row) -> Linear:
    """Unsloth's fused LoRA product. Raises `ImportError`, or what its import raises, where it does not run."""
    fast_lora: Any = importlib.import_module("unsloth.kernels.fast_lora")
    a, b = data.lora_a[0][0], data.lora_b[0][0]

    def forward(x: Tensor) -> Tensor:
        y: Tensor = fast_lora.LoRA_W.apply(x[None], data.weight, None, a, b, 2.0)
        return y[0]

    return forward


def can_run_unsloth(row: Row) -> bool:
    """It knows one linear, one adapter and no dropout."""
    return len(row.N) == 1 and row.num_adapters == 1 and row.dropout == 0.0


def absent_peers(data: Data, row: Row) -> dict[str, str]:
    """{peer: why it has no column here}."""
    absent = {"liger-kernel": "0.8.5 has no kernel for a LoRA linear (norms, RoPE, SwiGLU and losses only)"}
    try:
        unsloth(data, row)
    except Exception as error:  # its import looks for a GPU, patches transformers and raises all kinds
        absent["unsloth"] = f"does not import here: {type(error).__name__}: {error}"[:200]
    return absent


def eager(data: Data, row: Row) -> Linear:
    """PEFT's arithmetic, linear by linear and adapter by adapter."""
    weights = torch.split(data.weight, list(row.N))
    segments = segment_rows(row.T, row.num_adapters)
    p, num_adapters = row.dropout, row.num_adapters

    def lora(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        dropped = functional.dropout(x, p) if p > 0.0 else x
        return functional.linear(functional.linear(dropped, a), b) * 2.0

    def one(x: Tensor, weight: Tensor, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        base = functional.linear(x, weight)
        if num_adapters == 1:
            return base + lora(x, a[0], b[0])
        parts = [
            lora(x[first : first + rows], a[adapter], b[adapter]) for adapter, (first, rows) in enumerate(segments)
        ]
        return base + torch.cat(parts)

    def forward(x: Tensor) -> Tensor:
        parts = [one(x, w, a, b) for w, a, b in zip(weights, data.lora_a, data.lora_b, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    return forward


def compiled(data: Data, row: Row) -> Linear:
    """The eager one through `torch.compile`."""
    linear: Linear = torch.compile(eager(data, row))
    return linear


def leaves(data: Data) -> list[Tensor]:
    """The adapters' matrices."""
    return [matrix for matrices in (*data.lora_a, *data.lora_b) for matrix in matrices]
