"""Measure the fused linear beside the frozen product, eager LoRA and compiled LoRA over the committed grid."""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import bench_peers, bench_report, reference
from .bank import banked_linears
from .bench_peers import Data, Linear, Row, leaves, make_data
from .multi_lora import multi_lora_linears

GRID_FILE = Path(__file__).parent / "bench_grid.json"
CALLS_PER_GRAPH = 4
CALLS_IN_A_ROW = 16
"""Without a graph: the GPU waits for the first call's launches, which must not count for a quarter of the time."""
LONG_FLOP = 1e12
"""Of a product; longer calls hide their launches behind four of them."""
ROUNDS = 4


def read_grid(path: Path = GRID_FILE) -> list[Row]:
    """The rows to measure, in order."""
    return [Row(**{**row, "N": tuple(row["N"])}) for row in json.loads(path.read_text(encoding="utf-8"))]


def gate(device: torch.device) -> None:
    """Raise `RuntimeError` unless forward and every gradient are the float64 reference's: no speed on a red gate."""
    for num_adapters, dropout in ((1, 0.0), (1, 0.1), (4, 0.0), (4, 0.1)):
        row = Row(linear="gate", T=1000, K=1024, N=(512, 256, 256), r=16, num_adapters=num_adapters, dropout=dropout,
                  direction="both", cuda_graph=False, goal=False, compiled=False)  # fmt: skip
        data = make_data(row, device)
        wanted = _gradients(data, row, reference.multi_lora_linears, torch.float64)
        listed = functools.partial(_gradients, data, row, multi_lora_linears, torch.bfloat16)
        banked = functools.partial(_banked_gradients, data, row)
        # each twice: as recorded, and as played from the plan
        for way in (listed, banked, listed, banked):
            for position, (one, other) in enumerate(zip(way(), wanted, strict=True)):
                error = ((one.double() - other).norm() / other.norm()).item()
                if not error < 1.5e-2:
                    raise RuntimeError(
                        f"tensor {position} of {num_adapters} adapters at dropout {dropout} is off by {error:.1e} "
                        "(1.5e-2 allowed): the kernels are wrong here, so nothing is timed"
                    )


def _banked_gradients(data: Data, row: Row) -> list[Tensor]:
    bank = bench_peers.bank_of(data, row)
    x = data.x[0].detach().requires_grad_()
    weights = torch.split(data.weight, list(row.N))
    targets = [0] * len(row.N)
    y = banked_linears(x, weights, [None] * len(row.N), bank, routing=data.routing, targets=targets)
    torch.autograd.backward(y, data.dy[0])
    views = [bank.matrices(target=t, adapter=a) for t in range(len(row.N)) for a in range(row.num_adapters)]
    present = [view for view in views if view is not None]
    assert x.grad is not None
    return [y.detach(), x.grad, *[view.grad_a for view in present], *[view.grad_b for view in present]]


def _gradients(data: Data, row: Row, linears: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
    def cast(tensor: Tensor) -> Tensor:
        return tensor.detach().to(dtype).requires_grad_()

    x = cast(data.x[0])
    a = [[cast(matrix) for matrix in matrices] for matrices in data.lora_a]
    b = [[cast(matrix) for matrix in matrices] for matrices in data.lora_b]
    weights = torch.split(data.weight.to(dtype), list(row.N))
    y = linears(x, weights, [None] * len(row.N), a, b, routing=data.routing, targets=[0] * len(row.N))
    wanted = [x, *(matrix for matrices in a + b for matrix in matrices)]
    return [y.detach(), *torch.autograd.grad(y, wanted, data.dy[0].to(dtype))]


WITHOUT_MATRICES = ("frozen", "ours")
"""Ways whose matrices have no gradient of autograd's: there are none, or they are summed in the bank."""


def measure(row: Row, device: torch.device, *, peers: Sequence[str]) -> dict[str, Any]:
    """The flat record of one row: milliseconds of each way, and memory where it was looked at."""
    data = make_data(row, device)
    names = ["frozen", "ours", "eager"]
    if not row.cuda_graph and row.direction == "both":
        names.append("lists")
    if "unsloth" in peers and bench_peers.can_run_unsloth(row):
        names.append("unsloth")
    ways: dict[str, Linear] = {name: getattr(bench_peers, name)(data, row) for name in names}
    calls = {name: _call(way, data, row, with_adapters=name not in WITHOUT_MATRICES) for name, way in ways.items()}
    compile_error = None
    if row.compiled:
        compiled = _call(bench_peers.compiled(data, row), data, row, with_adapters=True)
        try:
            compiled(0)
            calls["compile"] = compiled
        except Exception as error:  # the compiler is a peer: where it fails, that is its result
            compile_error = f"{type(error).__name__}: {error}"[:200]
    times = _time(calls, graph=row.cuda_graph, num_calls=calls_between_events(row))
    record: dict[str, Any] = {
        "linear": row.linear, "T": row.T, "K": row.K, "N": sum(row.N), "num_targets": len(row.N), "r": row.r,
        "num_adapters": row.num_adapters, "dropout": row.dropout, "direction": row.direction,
        "cuda_graph": row.cuda_graph, "goal": row.goal,
        "ours_ms": times["ours"], "frozen_ms": times["frozen"], "eager_ms": times["eager"],
        "compile_ms": times.get("compile"),
        **{f"{name}_ms": times[name] for name in ("lists", "unsloth") if name in times},
    }  # fmt: skip
    if compile_error is not None:
        record["compile_error"] = compile_error
    for name in ("ours", "eager"):
        record[f"{name}_peak_bytes"] = _peak_bytes(calls[name], device)
        if row.direction == "both":
            record[f"{name}_saved_bytes"] = _saved_bytes(ways[name], data)
    return record


def calls_between_events(row: Row) -> int:
    """Calls that one time is taken of."""
    if row.cuda_graph or 2.0 * row.T * row.K * sum(row.N) > LONG_FLOP:
        return CALLS_PER_GRAPH
    return CALLS_IN_A_ROW


def _call(linear: Linear, data: Data, row: Row, *, with_adapters: bool) -> Callable[[int], Any]:
    """One forward, or one forward and backward, on input number `turn`."""
    if row.direction == "forward":

        def forward(turn: int) -> Tensor:
            with torch.no_grad():
                return linear(data.x[turn % 2])

        return forward
    matrices = leaves(data) if with_adapters else []

    def both(turn: int) -> tuple[Tensor, ...]:
        x = data.x[turn % 2]
        return torch.autograd.grad(linear(x), [x, *matrices], data.dy[turn % 2])

    return both


def _time(calls: dict[str, Callable[[int], Any]], *, graph: bool, num_calls: int) -> dict[str, float]:
    """Median milliseconds a call; the ways take turns, so that a warm or throttled chip is the same to all."""
    for call in calls.values():
        for turn in range(3):
            call(turn)
    torch.cuda.synchronize()
    runs = {name: (_captured if graph else _looped)(call, num_calls) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS + 1):
        for name, run in runs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            run()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end) / num_calls)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def _captured(call: Callable[[int], Any], num_calls: int) -> Callable[[], Any]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for turn in range(num_calls):
            call(turn)
    return graph.replay


def _looped(call: Callable[[int], Any], num_calls: int) -> Callable[[], Any]:
    def run() -> None:
        for turn in range(num_calls):
            call(turn)

    return run


def _peak_bytes(call: Callable[[int], Any], device: torch.device) -> int:
    """Most memory that one call holds beyond what was there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call(0)
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated(device)) - int(before)


def _saved_bytes(linear: Linear, data: Data) -> int:
    """Bytes saved for backward beyond the input, the weight and the adapters."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*data.x, data.weight, *leaves(data))}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in known:
            saved[address] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = linear(data.x[0])
    del y
    return sum(saved.values())


def profile_passes(row: Row, device: torch.device) -> dict[str, dict[str, float]]:
    """For ours and the frozen linear, milliseconds a call (forward and backward) of each of its passes on the GPU.

    Without a graph; passes on the second stream overlap the product, so they add up to more than the call takes.
    """
    data = make_data(row, device)
    passes = {}
    for name in ("ours", "frozen"):
        call = _call(getattr(bench_peers, name)(data, row), data, row, with_adapters=False)
        passes[name] = _passes(call)
    return passes


def _passes(call: Callable[[int], Any]) -> dict[str, float]:
    from torch.profiler import ProfilerActivity, profile

    for turn in range(2):
        call(turn)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for turn in range(CALLS_PER_GRAPH):
            call(turn)
        torch.cuda.synchronize()
    kernels = [
        (event.name[:60], float(event.time_range.start), event.device_time_total / 1000)
        for event in found.events() or ()
        if event.device_time_total > 0
    ]
    return bench_report.by_pass(kernels, num_calls=CALLS_PER_GRAPH)


__all__ = ["calls_between_events", "gate", "measure", "profile_passes", "read_grid"]
