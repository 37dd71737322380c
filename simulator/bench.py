"""How fast a Program is replayed: SimPy with and without spans, the recurrence in all its forms, a 1,000-point sweep.

Times are process CPU time, the best of several runs; building Program and graph is timed apart. Peak memory is what one
replay allocates on top of its input (tracemalloc, in a run of its own). Every method's makespan is compared with
SimPy's before its speed counts.
"""

import gc
import os
import platform
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from time import process_time
from typing import Any

import numpy as np

from ..planner import recurrence
from ..planner.build_program import build_program
from ..planner.costing import ProgramCosts, program_costs
from ..planner.graph import program_graph
from ..planner.jobs import job_from_lengths
from ..planner.plan import Plan, microbatch
from ..planner.recurrence import batched_makespans_ms, completion_times, makespan_ms
from ..traces.costs import CostProfile, CostTerms, LinkCosts, PassCosts
from ..traces.counted import counted
from .errors import SimulationError
from .replay import replay
from .to_timeline import to_timeline

SIZES = tuple((num_stages, num_microbatches) for num_stages in (4, 8, 64) for num_microbatches in (1_000, 10_000))
_SCENARIOS = 64
"""Cost vectors that the batched recurrence runs at once."""
_SWEEP_SIZE = (4, 1_000)
_AGREEMENT = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One method on one size."""

    num_stages: int
    num_microbatches: int
    num_actions: int
    method: str
    seconds: float
    """CPU time of one replay of the whole Program (batched: per scenario; sweep: of all its points)."""
    actions_per_s: float
    peak_memory_bytes: int | None = None


def bench(
    *,
    sizes: Sequence[tuple[int, int]] = SIZES,
    repeats: int = 3,
    sweep_points: int = 1_000,
    progress: Callable[[str, float], None] | None = None,
) -> tuple[BenchRow, ...]:
    """Measure every method on every size (stages, microbatches). Raises SimulationError if two methods disagree."""
    rows: list[BenchRow] = []
    for number, (num_stages, num_microbatches) in enumerate(sizes):
        if progress:
            progress(
                f"{counted(num_stages, 'stage')} x {counted(num_microbatches, 'microbatch')}", number / (len(sizes) + 1)
            )
        rows += _bench_size(num_stages, num_microbatches, repeats=repeats)
    if progress:
        progress(f"a sweep of {sweep_points:,} points", len(sizes) / (len(sizes) + 1))
    rows.append(_bench_sweep(repeats=repeats, num_points=sweep_points))
    return tuple(rows)


def stream_plan(num_stages: int, num_microbatches: int) -> Plan:
    """Four adapters by turns, global batches of 16 microbatches, uneven tokens: what a long run looks like."""
    num_adapters, per_batch = 4, 16
    draw = np.random.default_rng(7)
    counts = [len(range(adapter, num_microbatches, num_adapters)) for adapter in range(num_adapters)]
    jobs = tuple(
        job_from_lengths(
            adapter=adapter,
            name=f"adapter-{adapter}",
            lengths=draw.integers(2_000, 8_192, count).tolist(),
            global_batch_size=per_batch,
        )
        for adapter, count in enumerate(counts)
    )
    samples = [[sample for batch in job.global_batches for sample in batch] for job in jobs]
    # Whole global batches by turns, so that dependents stand far apart even with 64 stages.
    order = sorted(
        (sample.index // per_batch, adapter, sample.index) for adapter, own in enumerate(samples) for sample in own
    )
    return Plan(
        jobs=jobs,
        num_stages=num_stages,
        microbatch_tokens=8_192,
        microbatches=tuple(microbatch([samples[adapter][index]]) for _, adapter, index in order),
    )


def bench_profile(num_stages: int) -> CostProfile:
    """Costs by tokens with latency and bandwidth: nothing is even, everything waits at times."""
    return CostProfile(
        name="bench",
        origin="textbook",
        source="costs by tokens, links with latency",
        num_layers=num_stages,
        forward=PassCosts(linears={"fused": CostTerms(fixed_ms=1.0, per_token_ms=0.003)}),
        backward=PassCosts(linears={"fused": CostTerms(fixed_ms=1.0, per_token_ms=0.0034)}),
        step_fixed_ms=2.0,
        link=LinkCosts(latency_ms=0.05, bytes_per_ms=1e7, bytes_per_token=16_384.0),
    )


def _bench_size(num_stages: int, num_microbatches: int, *, repeats: int) -> list[BenchRow]:
    plan, profile = stream_plan(num_stages, num_microbatches), bench_profile(num_stages)
    build_s, program = _timed(lambda: build_program(plan, schedule="1f1b-slots"), repeats=1)
    graph_s, graph = _timed(lambda: program_graph(program), repeats=repeats)
    cost_s, costs = _timed(lambda: program_costs(program, plan, profile, graph=graph), repeats=repeats)
    simpy_s, simulated = _timed(lambda: replay(costs), repeats=repeats)
    spans_s, _ = _timed(lambda: to_timeline(costs, replay(costs), origin="bench"), repeats=repeats)
    makespan = simulated.makespan_ms()
    seconds = {"build-program": build_s, "build-graph": graph_s, "build-costs": cost_s}
    seconds |= {"simpy": simpy_s, "simpy-with-spans": spans_s}
    for method, (found_s, found) in _recurrences(costs, repeats=repeats).items():
        if abs(found - makespan) > _AGREEMENT * makespan:
            raise SimulationError(
                f"{method} gives {found} ms where SimPy gives {makespan}; no speed counts before this"
            )
        seconds[method] = found_s
    peaks = {"simpy": _peak_bytes(lambda: replay(costs)), "recurrence": _peak_bytes(lambda: makespan_ms(costs))}
    return [
        BenchRow(
            num_stages=num_stages,
            num_microbatches=num_microbatches,
            num_actions=graph.num_actions(),
            method=method,
            seconds=taken,
            actions_per_s=graph.num_actions() / taken,
            peak_memory_bytes=peaks.get(method),
        )
        for method, taken in seconds.items()
    ]


def _recurrences(costs: ProgramCosts, *, repeats: int) -> dict[str, tuple[float, float]]:
    """(CPU seconds, makespan) of the recurrence with numba where it is installed, in plain Python, and batched."""
    found: dict[str, tuple[float, float]] = {}
    makespan = completion_times(costs).makespan_ms()
    if recurrence.uses_numba():
        rounds = max(1, 2_000_000 // costs.graph.num_actions())
        taken, _ = _timed(lambda: [makespan_ms(costs) for _ in range(rounds)], repeats=repeats)
        found["recurrence"] = (taken / rounds, makespan_ms(costs))
        taken, _ = _timed(lambda: [completion_times(costs) for _ in range(rounds)], repeats=repeats)
        found["recurrence-all-times"] = (taken / rounds, makespan)
    taken, plain = _timed(lambda: completion_times(costs, with_numba=False), repeats=repeats)
    found["recurrence-python"] = (taken, plain.makespan_ms())
    scenarios = np.broadcast_to(costs.duration_ms, (_SCENARIOS, len(costs.duration_ms)))
    taken, makespans = _timed(lambda: batched_makespans_ms(costs, duration_ms=scenarios), repeats=1)
    found["recurrence-batched"] = (taken / _SCENARIOS, float(makespans.max()))
    return found


def _bench_sweep(*, repeats: int, num_points: int) -> BenchRow:
    num_stages, num_microbatches = _SWEEP_SIZE
    plan, profile = stream_plan(num_stages, num_microbatches), bench_profile(num_stages)
    program = build_program(plan, schedule="1f1b-slots")
    graph = program_graph(program)

    def sweep() -> float:
        slowest = 0.0
        for point in range(num_points):
            link = replace(profile.link, latency_ms=0.001 * point)
            costs = program_costs(program, plan, replace(profile, link=link), graph=graph)
            slowest = max(slowest, makespan_ms(costs))
        return slowest

    taken, _ = _timed(sweep, repeats=min(repeats, 2))
    return BenchRow(
        num_stages=num_stages,
        num_microbatches=num_microbatches,
        num_actions=graph.num_actions(),
        method=f"sweep-{num_points}-points",
        seconds=taken,
        actions_per_s=num_points * graph.num_actions() / taken,
    )


def _timed(work: Callable[[], Any], *, repeats: int) -> tuple[float, Any]:
    best, result = float("inf"), None
    for _ in range(max(repeats, 1)):
        gc.collect()
        begin = process_time()
        result = work()
        best = min(best, process_time() - begin)
    return max(best, 1e-9), result


def _peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def report(rows: Sequence[BenchRow], *, command: str) -> dict[str, Any]:
    """The rows with what they were measured on, ready for json.dumps."""
    return {
        "benchmark": "simulator",
        "command": command,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpus": os.cpu_count(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "load_average": list(os.getloadavg()),
            **{name: _version(name) for name in ("numpy", "numba", "simpy")},
        },
        "clock": "process CPU time, best of the repeats",
        "results": [asdict(row) for row in rows],
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
