"""The benchmark's own bookkeeping: workloads, records and files. No time is asserted."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from loraplex.planner.bench import BenchResult, run_case, write_results
from loraplex.planner.bench_cases import Case, bench_lengths, case_jobs, grid
from loraplex.planner.bench_table import summary_table
from loraplex.planner.errors import PlanError

CASE = Case(
    family="mixed",
    num_adapters=4,
    global_batch=0,
    num_batches=2,
    even=False,
    microbatch_tokens=4096,
    num_stages=4,
)


def test_the_grid_covers_every_shape_once() -> None:
    cases = list(grid(adapters=(4,)))
    assert len(set(cases)) == len(cases) == 5 * 4 * 2 * 3 * 3
    assert 20 < len(list(grid(adapters=(4,), quick=True))) < 40
    large = [case for case in grid(adapters=(64,)) if case.num_batches == 64]
    assert {(case.num_adapters, case.global_batch) for case in large} == {(64, 32)}


def test_a_workload_mixes_sizes_cuts_the_overlong_and_ends_short() -> None:
    jobs = case_jobs(CASE, lengths=bench_lengths(None))
    assert [job.name for job in jobs] == ["dialogsum-0", "scitldr_a-1", "qmsum_span-2", "arxiv_sum-3"]
    assert [[len(batch) for batch in job.global_batches] for job in jobs] == [[8, 5], [13], [29], [5]]
    assert max(sample.num_tokens for job in jobs for batch in job.global_batches for sample in batch) <= 4096
    assert jobs == case_jobs(CASE, lengths=bench_lengths(None))


def test_records_tables_and_files(tmp_path: Path) -> None:
    jobs = case_jobs(CASE, lengths=bench_lengths(None))
    records = run_case(CASE, jobs=jobs, strategies=("auto", "stream", "greedy", "published"))
    assert [record.strategy for record in records] == ["auto", "stream", "greedy", "published"]
    assert all(record.valid and record.slots >= record.lower_bound for record in records)
    worse = replace(records[0], strategy="milp", slots=records[0].slots - 1)
    result = BenchResult(records=(*records, worse), machine="m", date="d", command="c")
    assert result.losses() == [("mixed n4 gmixed k2 uneven c4096", 4, "milp")]
    assert [row["strategy"] for row in result.summary()] == ["auto", "stream", "greedy", "milp", "published"]
    assert summary_table(result).row_count == 5
    paths = write_results(result, tmp_path)
    assert [path.name for path in paths] == [
        "planner-grid.json",
        "planner-grid.csv",
        "summary-planner.json",
        "planner-grid.png",
    ]
    rows = json.loads(paths[0].read_text(encoding="utf-8"))
    assert {"workload", "strategy", "num_stages", "slots", "lower_bound", "gap", "seconds"} <= set(rows[0])
    assert len(list(csv.DictReader(paths[1].read_text(encoding="utf-8").splitlines()))) == 5
    assert paths[3].read_bytes().startswith(b"\x89PNG")
    with pytest.raises(PlanError, match=r"name='\.\./planner' must be a plain file name"):
        write_results(result, tmp_path, stem="../planner")
