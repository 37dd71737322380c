"""The workloads of `bench planner`: a grid over lengths, adapters, global batches, capacities and stages.

Lengths are those of real data sets, read from CSV files or drawn from the shipped tables, and log-normal ones; samples
above the capacity are cut to it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from ..traces.workloads import DATASETS, read_lengths, sample_lengths
from .jobs import Job, job_from_lengths

FAMILIES = {
    "instructions": ("gsm8k", "codealpaca"),
    "abstracts": ("arxiv_sum",),
    "mixed": ("dialogsum", "scitldr_a", "qmsum_span", "arxiv_sum"),
    "meetings": ("qmsum_span",),
    "log-normal": ("log-normal",),
}
"""Data sets that the adapters of a workload take by turns; meetings and log-normal are heavy-tailed."""
Lengths = Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One workload of the grid. `global_batch` 0 stands for 8, 16 and 32 by turns."""

    family: str
    num_adapters: int
    global_batch: int
    num_batches: int
    even: bool
    microbatch_tokens: int
    num_stages: int

    def name(self) -> str:
        """The workload in a word, without its stages."""
        size = self.global_batch or "mixed"
        shape = "" if self.even else " uneven"
        return f"{self.family} n{self.num_adapters} g{size} k{self.num_batches}{shape} c{self.microbatch_tokens}"


def grid(*, adapters: Sequence[int], quick: bool = False) -> Iterator[Case]:
    """The workloads: all of them for up to 4 adapters, a part for more, and the scale of 64 x 64 x 32."""
    number = 0
    for count in adapters:
        small = count <= 4
        sizes = (8, 16, 32, 0) if small else (8, 32)
        stages = (1, 4, 8) if small else (8,)
        shapes = (True, False) if small else (True,)
        for family, size, even, tokens, num_stages in product(FAMILIES, sizes, shapes, (4096, 8192, 16384), stages):
            number += 1
            if not quick or number % 12 == 5:
                yield Case(
                    family=family,
                    num_adapters=count,
                    global_batch=size,
                    num_batches=16,
                    even=even,
                    microbatch_tokens=tokens,
                    num_stages=num_stages,
                )
        for family, tokens in product(("abstracts", "mixed"), (4096, 16384)) if count == 64 and not quick else ():
            yield Case(
                family=family,
                num_adapters=64,
                global_batch=32,
                num_batches=64,
                even=True,
                microbatch_tokens=tokens,
                num_stages=8,
            )


def bench_lengths(folder: Path | None) -> Lengths:
    """Lengths of each data set: from FOLDER/NAME.csv, else drawn from the shipped tables; and log-normal ones."""
    drawn = np.random.default_rng(1).lognormal(mean=6.0, sigma=1.0, size=40_000)
    lengths: dict[str, Sequence[int]] = {"log-normal": tuple(np.clip(np.rint(drawn), 16, 60_000).astype(int).tolist())}
    for number, dataset in enumerate(DATASETS):
        if folder is None:
            lengths[dataset] = sample_lengths(dataset, num_samples=20_000, seed=number)
        else:
            lengths[dataset] = read_lengths(folder / f"{dataset}.csv")
    return lengths


def case_jobs(case: Case, *, lengths: Lengths) -> tuple[Job, ...]:
    """The jobs of a workload: each adapter reads on in its data set where the one before it stopped."""
    datasets = FAMILIES[case.family]
    cursors = dict.fromkeys(datasets, 0)
    jobs = []
    for adapter in range(case.num_adapters):
        dataset = datasets[adapter % len(datasets)]
        size = case.global_batch or (8, 16, 32)[adapter % 3]
        batches = case.num_batches if case.even else max(1, case.num_batches * (4, 2, 1, 3)[adapter % 4] // 4)
        needed = size * batches - (0 if case.even else 3)
        values = lengths[dataset]
        taken = [values[(cursors[dataset] + index) % len(values)] for index in range(needed)]
        cursors[dataset] += needed
        jobs.append(
            job_from_lengths(
                adapter=adapter,
                name=f"{dataset}-{adapter}",
                lengths=[min(value, case.microbatch_tokens) for value in taken],
                global_batch_size=size,
            )
        )
    return tuple(jobs)
