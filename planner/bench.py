"""How near the planner comes to what is possible: a grid of workloads, every strategy, slots over the lower bound.

Run it with `loraplex bench planner`. The workloads are those of bench_cases.py.
"""

import csv
import io
import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from itertools import product
from pathlib import Path
from time import perf_counter, process_time

import numpy as np

from ..traces.files import write_atomically
from .bench_cases import Case, bench_lengths, case_jobs, grid
from .dependencies import plan_slots
from .errors import PlanError
from .jobs import Job
from .make_plan import make_plan
from .packing.lower_bounds import lower_bounds
from .packing.pack_greedy import Bins, Pack, first_fit_decreasing
from .packing.pack_milp import MilpLimits, pack_milp
from .packing.workload import Workload, workload_of
from .plan import Plan
from .systems import lorafusion
from .verify import verify

STRATEGIES = ("auto", "stream", "greedy", "milp", "published")
_LEAST_SECONDS = 0.5
"""Strategies that call a solver get as long as `auto` took, and at least this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What one strategy made of one workload."""

    workload: str
    strategy: str
    num_stages: int
    slots: int
    lower_bound: int
    gap: float
    seconds: float
    cpu_seconds: float
    num_microbatches: int
    stall_slots: int
    simple_bound: int
    """max(volume, Martello-Toth L2, chain), without the bound that joins chain and volume."""
    region: str
    """volume: volume or L2 is at least twice the chain; chain: the chain binds; between."""
    valid: bool
    family: str
    num_adapters: int
    num_samples: int
    microbatch_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """All records of one run and where it was taken."""

    records: tuple[Record, ...]
    machine: str
    date: str
    command: str
    load_average: float = 0.0
    """Of the machine over the last quarter of an hour of the run: above the cores, wall times are of little worth."""

    def summary(self) -> list[dict[str, object]]:
        """Per region and strategy: geometric mean and worst of slots over the lower bound, and the time."""
        rows = []
        for region, strategy in product(("volume", "between", "chain"), STRATEGIES):
            chosen = [entry for entry in self.records if (entry.region, entry.strategy) == (region, strategy)]
            if chosen:
                rows.append(
                    {
                        "region": region,
                        "strategy": strategy,
                        "workloads": len(chosen),
                        "mean_gap": _geometric_gap([entry.slots / entry.lower_bound for entry in chosen]),
                        "mean_gap_simple_bound": _geometric_gap([e.slots / e.simple_bound for e in chosen]),
                        "worst_gap": round(max(entry.gap for entry in chosen), 4),
                        "at_bound": sum(entry.slots == entry.lower_bound for entry in chosen),
                        "median_seconds": round(float(np.median([entry.seconds for entry in chosen])), 3),
                        "worst_seconds": round(max(entry.seconds for entry in chosen), 3),
                        "worst_cpu_seconds": round(max(entry.cpu_seconds for entry in chosen), 3),
                    }
                )
        return rows

    def losses(self) -> list[tuple[str, int, str]]:
        """(workload, stages, rival) wherever a rival took fewer slots than auto."""
        auto = {(entry.workload, entry.num_stages): entry.slots for entry in self.records if entry.strategy == "auto"}
        return [
            (entry.workload, entry.num_stages, entry.strategy)
            for entry in self.records
            if entry.slots < auto.get((entry.workload, entry.num_stages), 0)
        ]


def run_bench(
    *,
    lengths: Path | None,
    adapters: tuple[int, ...],
    quick: bool,
    strategies: Sequence[str] = STRATEGIES,
    progress: Callable[[str, float], None] | None = None,
) -> BenchResult:
    """Plan the whole grid by every strategy. See `run_case` for the time that each gets."""
    tables = bench_lengths(lengths)
    cases = list(grid(adapters=adapters, quick=quick))
    records: list[Record] = []
    for number, case in enumerate(cases):
        records += run_case(case, jobs=case_jobs(case, lengths=tables), strategies=strategies)
        if progress is not None:
            progress(f"{case.name()} S{case.num_stages}", (number + 1) / len(cases))
    words = ["loraplex bench planner", *(["--lengths FOLDER"] if lengths else []), *(["--quick"] if quick else [])]
    return BenchResult(
        records=tuple(records),
        machine=f"{os.cpu_count()} cores {platform.machine()}, Python {platform.python_version()}",
        load_average=round(os.getloadavg()[2], 1) if hasattr(os, "getloadavg") else 0.0,
        date=date.today().isoformat(),
        command=" ".join([*words, *(f"--adapters {count}" for count in adapters)]),
    )


def run_case(case: Case, *, jobs: tuple[Job, ...], strategies: Sequence[str]) -> list[Record]:
    """One record per strategy, those that call a solver in the time that `auto` took, or half a second.

    `milp` is left out above 20,000 samples, where it could only run into its limit.
    """
    workload = workload_of(jobs, microbatch_tokens=case.microbatch_tokens, num_stages=case.num_stages)
    lower = lower_bounds(workload)
    packed = max(lower.volume, lower.martello_toth)
    template = Record(
        workload=case.name(),
        strategy="",
        num_stages=case.num_stages,
        slots=0,
        lower_bound=lower.slots(),
        gap=0.0,
        seconds=0.0,
        cpu_seconds=0.0,
        num_microbatches=0,
        stall_slots=0,
        simple_bound=max(packed, lower.chain),
        region="volume" if packed >= 2 * lower.chain else "chain" if lower.chain >= packed else "between",
        valid=False,
        family=case.family,
        num_adapters=case.num_adapters,
        num_samples=len(workload.sizes),
        microbatch_tokens=case.microbatch_tokens,
    )
    records: list[Record] = []
    for strategy in strategies:
        if strategy != "milp" or len(workload.sizes) <= 20_000:
            limit_s = max([_LEAST_SECONDS, *(record.seconds for record in records if record.strategy == "auto")])
            records.append(_timed(template, partial(_plan, case, jobs, strategy, limit_s=limit_s), strategy=strategy))
    return records


def _plan(case: Case, jobs: tuple[Job, ...], strategy: str, *, limit_s: float) -> Plan:
    if strategy == "published":
        pack = _milp_until(perf_counter() + limit_s)
        run = lorafusion(jobs, num_stages=case.num_stages, microbatch_tokens=case.microbatch_tokens, pack=pack)
        return run.plans[0]
    return make_plan(
        jobs,
        num_stages=case.num_stages,
        microbatch_tokens=case.microbatch_tokens,
        strategy=strategy,
        time_limit_s=limit_s if strategy == "milp" else 60.0,
    )


def _milp_until(end_s: float) -> Pack:
    """The MILP of each (group, step) while there is time, then the published greedy start."""

    def pack(workload: Workload, items: Sequence[int]) -> Bins:
        left_s = end_s - perf_counter()
        if left_s < 0.01:
            return first_fit_decreasing(workload, items)
        result = pack_milp(workload, items, limits=MilpLimits(time_limit_s=left_s))
        return [list(row) for row in result.bins]

    return pack


def _timed(template: Record, make: Callable[[], Plan], *, strategy: str) -> Record:
    start, cpu_start = perf_counter(), process_time()
    plan = make()
    seconds, cpu_seconds = perf_counter() - start, process_time() - cpu_start
    slots = plan_slots(plan)
    # The published planner's dummies are empty slots by design; every other rule holds for it too.
    broken = [entry for entry in verify(plan) if strategy != "published" or entry.rule != "layout"]
    if broken:
        raise PlanError(f"{template.workload}, {strategy}: {broken[0].message}; a benchmark counts valid plans only")
    return replace(
        template,
        strategy=strategy,
        slots=slots,
        gap=round(slots / template.lower_bound - 1, 6),
        seconds=round(seconds, 4),
        cpu_seconds=round(cpu_seconds, 4),
        num_microbatches=sum(bool(batch.samples) for batch in plan.microbatches),
        stall_slots=slots - len(plan.microbatches),
        valid=True,
    )


def write_results(
    result: BenchResult, folder: Path, *, study: Sequence[Mapping[str, object]] = (), stem: str = "planner"
) -> tuple[Path, ...]:
    """Flat records as JSON and CSV, the summary with the study of small workloads, and the plot."""
    from .bench_plot import plot_bench

    if not stem or Path(stem).name != stem:
        raise PlanError(f"name={stem!r} must be a plain file name; the folder is given by --output")
    rows = [asdict(record) for record in result.records]
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    write_atomically(folder / f"{stem}-grid.json", f"[\n  {lines}\n]\n")
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / f"{stem}-grid.csv", table.getvalue())
    about = {"command": result.command, "machine": result.machine, "date": result.date}
    about["load_average"] = str(result.load_average)
    summary = {**about, "losses_of_auto": result.losses(), "summary": result.summary(), "small": list(study)}
    write_atomically(folder / f"summary-{stem}.json", json.dumps(summary, indent=1) + "\n")
    plot_bench(result, folder / f"{stem}-grid.png")
    names = (f"{stem}-grid.json", f"{stem}-grid.csv", f"summary-{stem}.json", f"{stem}-grid.png")
    return tuple(folder / name for name in names)


def _geometric_gap(ratios: Sequence[float]) -> float:
    return round(math.exp(sum(map(math.log, ratios)) / len(ratios)) - 1, 5)
