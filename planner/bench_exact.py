"""Whose fault is a gap, the plan's or the bound's? Small workloads, solved exactly, tell."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from .bench_cases import FAMILIES, Lengths
from .dependencies import plan_slots
from .jobs import Job, job_from_lengths
from .make_plan import make_plan
from .packing.exact import fewest_slots
from .packing.lower_bounds import batch_bounds, lower_bounds
from .packing.workload import workload_of

_MAX_NODES = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactRecord:
    """One family of small workloads at one depth: how often plan and bounds equal the proved optimum."""

    family: str
    num_stages: int
    workloads: int
    proved: int
    """Workloads whose fewest slots were proved; the counts below are of these."""
    plan_optimal: int
    """By streaming and greedy rounds, the exact search left out."""
    bound_tight: int
    simple_bound_tight: int
    """max(volume, Martello-Toth L2, chain)."""
    slots_above_optimum: int
    """Of all plans together."""
    optimum_above_bound: int
    """Slots, of all workloads together."""
    optimum_above_simple_bound: int
    optimum: int


def exact_study(*, lengths: Lengths, num_workloads: int, stages: Sequence[int] = (1, 2, 4)) -> tuple[ExactRecord, ...]:
    """Small workloads of every family: two or three adapters, two or three steps of two or three samples."""
    return tuple(
        _study(family, num_stages, lengths=lengths, num_workloads=num_workloads)
        for family, num_stages in product(FAMILIES, stages)
    )


def study_as_json(records: Sequence[ExactRecord]) -> list[dict[str, Any]]:
    """Flat records."""
    return [asdict(record) for record in records]


def _study(family: str, num_stages: int, *, lengths: Lengths, num_workloads: int) -> ExactRecord:
    counts = dict.fromkeys(("proved", "plan", "bound", "simple", "above", "gap", "simple_gap", "optimum"), 0)
    for seed in range(num_workloads):
        jobs, capacity = _small_jobs(family, seed, lengths=lengths)
        workload = workload_of(jobs, microbatch_tokens=capacity, num_stages=num_stages)
        bounds = batch_bounds(workload)
        lower = lower_bounds(workload, bounds=bounds)
        simple = max(lower.volume, lower.martello_toth, lower.chain)
        taken = min(
            plan_slots(make_plan(jobs, num_stages=num_stages, microbatch_tokens=capacity, strategy=strategy))
            for strategy in ("stream", "greedy")
        )
        bins, proved = fewest_slots(workload, bounds=bounds, at_least=lower.slots(), below=taken, max_nodes=_MAX_NODES)
        if not proved:
            continue
        optimum = workload.num_slots(bins) if bins is not None else taken
        counts["proved"] += 1
        counts["plan"] += taken == optimum
        counts["bound"] += lower.slots() == optimum
        counts["simple"] += simple == optimum
        counts["above"] += taken - optimum
        counts["gap"] += optimum - lower.slots()
        counts["simple_gap"] += optimum - simple
        counts["optimum"] += optimum
    return ExactRecord(
        family=family,
        num_stages=num_stages,
        workloads=num_workloads,
        proved=counts["proved"],
        plan_optimal=counts["plan"],
        bound_tight=counts["bound"],
        simple_bound_tight=counts["simple"],
        slots_above_optimum=counts["above"],
        optimum_above_bound=counts["gap"],
        optimum_above_simple_bound=counts["simple_gap"],
        optimum=counts["optimum"],
    )


def _small_jobs(family: str, seed: int, *, lengths: Lengths) -> tuple[tuple[Job, ...], int]:
    """Jobs of real lengths and a capacity of about two or three samples, the longest cut to it."""
    random = np.random.default_rng(seed)
    datasets = FAMILIES[family]
    num_adapters, num_batches, size = (int(random.integers(2, 4)) for _ in range(3))
    drawn = [
        [int(random.choice(lengths[datasets[adapter % len(datasets)]])) for _ in range(num_batches * size)]
        for adapter in range(num_adapters)
    ]
    mean = float(np.mean([length for row in drawn for length in row]))
    capacity = max(2, int(mean * random.uniform(1.5, 3.5)))
    jobs = tuple(
        job_from_lengths(
            adapter=adapter,
            name=f"a{adapter}",
            lengths=[min(length, capacity) for length in row],
            global_batch_size=size,
        )
        for adapter, row in enumerate(drawn)
    )
    return jobs, capacity
