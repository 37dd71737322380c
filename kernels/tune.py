"""Find this GPU's block sizes by measuring, one choice after another, on whole forward and backward passes."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .bench import gate
from .bench_peers import Data, Row, make_data
from .layout import GemmConfig, KernelConfig, Layout, PassConfig, padded_rank
from .packing import pack_a, pack_b
from .passes import DenseProduct, run_backward, run_forward
from .tuning import Tuned, fallback_config

ROWS, RANKS, DROPOUTS = (2048, 4096, 8192), (16, 64), (0.0, 0.1)
WIDTHS = (4096, 8192)
"""K = N of the linears that a bucket is tuned on: the smallest and the middling of today's models."""
LINKS = 3
"""Linears in a row, forward through all and then backward, as in training: what starts early takes its place from the
pass before it, which a lone linear does not show (an early start, tuned in on lone ones, costs 4 % in training: H100,
2026-11-25)."""
REPLAYS = 8
"""One behind the other, for the clock that a GPU keeps under load."""

SHRINK = tuple(
    PassConfig(rows=rows, columns=64, num_warps=num_warps, num_stages=num_stages)
    for rows, num_warps, num_stages in ((32, 2, 4), (64, 4, 3), (64, 4, 4), (16, 1, 4))
)
GRADIENT = tuple(
    PassConfig(rows=rows, columns=128, num_warps=num_warps, num_stages=num_stages)
    for rows, num_warps, num_stages in ((64, 4, 2), (64, 4, 3), (32, 4, 2), (32, 4, 3))
)
GEMM = (
    None,
    GemmConfig(rows=128, columns=256, depth=64, bands=8, num_warps=8, num_stages=3),
    GemmConfig(rows=128, columns=256, depth=64, bands=4, num_warps=8, num_stages=3),
    GemmConfig(rows=128, columns=256, depth=64, bands=16, num_warps=8, num_stages=3),
)


ROOM_BYTES = 37_000
"""What the largest of `GEMM` leaves of 228 KiB."""


def tune_gpu(*, report: Callable[[str], None]) -> list[Tuned]:
    """One configuration per (rows, r, dropout or not) for bf16. A choice that does not run here is passed over."""
    device = torch.device("cuda")
    gate(device)
    entries = []
    for lora_rank in RANKS:
        for dropout in DROPOUTS:
            for num_rows in ROWS:
                config, gain = _tune_bucket(num_rows, lora_rank, dropout, device)
                entries.append(
                    Tuned(
                        dtype=str(torch.bfloat16), max_rows=num_rows, max_lora_rank=lora_rank, dropout=dropout > 0.0,
                        config=config,
                    )
                )  # fmt: skip
                report(f"rows <= {num_rows}, r <= {lora_rank}, p = {dropout}: {gain:.1%} faster than the fallback")
    return entries


def _tune_bucket(num_rows: int, lora_rank: int, dropout: float, device: torch.device) -> tuple[KernelConfig, float]:
    """(the best configuration, its gain over the fallback)."""
    timers = [_timer(num_rows, width, lora_rank, dropout, device) for width in WIDTHS]
    best = fallback_config(device)
    fallback_ms = [timer(best) for timer in timers]

    def cost(config: KernelConfig) -> float:
        """Mean time relative to the fallback, so that a small linear counts as much as a large one."""
        return sum(timer(config) / ms for timer, ms in zip(timers, fallback_ms, strict=True)) / len(timers)

    least = 1.0
    for candidates in (_products, _shrinks, _gradients):
        for config in candidates(best):
            if config == best:
                continue
            now = cost(config)
            if now < 0.997 * least:  # less is noise: the same configuration twice differs by that much
                best, least = config, now
    return best, 1.0 - least


def _products(config: KernelConfig) -> Iterator[KernelConfig]:
    for gemm in GEMM:
        for beside in (False, True):
            yield replace(config, gemm=gemm, beside=beside)
    yield replace(config, early=True)


def _shrinks(config: KernelConfig) -> Iterator[KernelConfig]:
    for shrink in SHRINK:
        yield replace(config, shrink=shrink)
        # less of the shared memory, so that the product behind it can start beside it
        yield replace(config, shrink=shrink, room_bytes=ROOM_BYTES)
    yield replace(config, min_programs=256, min_drawing_programs=256)


def _gradients(config: KernelConfig) -> Iterator[KernelConfig]:
    for gradient in GRADIENT:
        yield replace(config, gradient=gradient)
    for rows, programs in ((1024, 128), (2048, 512)):
        yield replace(config, gradient_rows=rows, min_gradient_programs=programs)


def _timer(
    num_rows: int, width: int, lora_rank: int, dropout: float, device: torch.device
) -> Callable[[KernelConfig], float]:
    """Milliseconds of the chain, forward and backward, under a configuration; infinite where it cannot run."""
    links = _links(num_rows, width, lora_rank, dropout, device)

    def timer(config: KernelConfig) -> float:
        try:
            return _replayed(lambda turn: chain(links, config, turn=turn))
        except Exception as error:
            # too much shared memory, or a compiler that cannot: not a choice for this GPU
            if type(error).__name__ not in {"OutOfResources", "CompilationError", "PTXASError", "RuntimeError"}:
                raise
            return float("inf")

    return timer


def _links(num_rows: int, width: int, lora_rank: int, dropout: float, device: torch.device) -> list[Data]:
    row = Row(linear="tune", T=num_rows, K=width, N=(width,), r=lora_rank, num_adapters=1, dropout=dropout,
              direction="both", cuda_graph=True, goal=False, compiled=False)  # fmt: skip
    return [make_data(row, device) for _ in range(LINKS)]


def chain(links: Sequence[Data], config: KernelConfig, *, turn: int) -> Tensor:
    """Forward through square linears `[T, K]`, one's output the next one's input, and back: dx of the first."""
    x, forth = links[0].x[turn % 2].detach(), []
    for data in links:
        k = x.shape[1]
        layout = Layout(
            num_adapters=1, num_features=k, out_features=(k,), config=config,
            padded_rank=padded_rank([data.lora_a[0][0].shape[0]]),
        )  # fmt: skip
        more: dict[str, Any] = {"layout": layout, "routing": data.routing, "targets": [0]}
        a = pack_a(data.lora_a[0], layout=layout, like=x)
        b = pack_b(data.lora_b[0], layout=layout, like=x)
        base = DenseProduct(weights=(data.weight,))
        y, s = run_forward(x, base, None, a, b, **more)
        forth.append((x, s, base, a, b, more))
        x = y
    dx = links[-1].dy[turn % 2]
    for x, s, base, a, b, more in reversed(forth):
        made, _, _ = run_backward(dx, x, s, base, a, b, grad_dtype=x.dtype, needs_dx=True, **more)
        assert made is not None
        dx = made
    return dx


def _replayed(run: Callable[[int], Any]) -> float:
    run(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for turn in range(2):
            run(turn)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS + 2)]  # type: ignore[no-untyped-call]
    for event in events:
        event.record()
        graph.replay()
    torch.cuda.synchronize()
    # the first replay finds a GPU that has rested
    times = [one.elapsed_time(other) / 2 for one, other in itertools.pairwise(events[1:])]
    return float(statistics.median(times))
