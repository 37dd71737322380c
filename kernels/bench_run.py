"""A run over the benchmark's grid: row by row, what fails is noted, what an earlier run has is taken over."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import bench, bench_peers, bench_report
from .bench_peers import Row, make_data
from .bench_report import Record

LOG_FILE = Path(__file__).parents[1] / "docs" / "log.md"
"""There in a checkout, from which results are committed; a wheel has no docs."""
NOTE = (
    "q/k/v and gate/up are one call on one input and share one dropout mask; ours is banked_linears, which adds the "
    "adapters' gradients to float32 sums, lists is multi_lora_linears; frozen is one GEMM of the linears' joined "
    "weights, forward and, where the direction is both, the gradient of the input; eager is PEFT's arithmetic linear "
    "by linear; bf16 throughout; median of interleaved runs, two inputs in turn."
)


@dataclass(slots=True, kw_only=True)
class Results:
    """What is known so far, by row or by shape."""

    records: dict[str, Record] = field(default_factory=dict)
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """{row, or profile of a shape: why}."""

    def missing(self, rows: Sequence[Row]) -> list[str]:
        """Rows without a record, whether they failed or were not reached."""
        return [name for row in rows if (name := row.name()) not in self.records]

    def without_profile(self, rows: Sequence[Row]) -> list[Row]:
        """One row for each shape that misses what it is held to and of which no profile is known."""
        found: dict[str, Row] = {}
        for row in rows:
            record, shape = self.records.get(row.name()), row.shape_name()
            if record is not None and bench_report.missed(record) and shape not in self.profiles:
                found.setdefault(shape, row)
        return list(found.values())


def resumed(path: Path, *, gpu: str, versions: Mapping[str, str]) -> Results:
    """What an earlier, unfinished run wrote. Raises `ValueError` where it is no such file or of another machine."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found, made_with = document["gpu"], document["versions"]
        records = {bench_report.row_name(record): record for record in document["records"]}
        profiles = dict(document.get("profile_ms", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be resumed ({type(error).__name__}: {error}): give a results file of bench kernels"
        ) from error
    for name, theirs, ours in (("gpu", found, gpu), ("versions", made_with, dict(versions))):
        if theirs != ours:
            raise ValueError(
                f"{path} has {name} {theirs}, here it is {ours}: a row is compared with its neighbours, so one file "
                "holds one machine; run without --resume"
            )
    return Results(records=records, profiles=profiles)


def check_whole(path: Path) -> None:
    """Raise `ValueError` where an unfinished run's results lie at `path`, which a new run would write over."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        missing, unprofiled = document["rows"]["missing"], document["missed_without_profile"]
        measured = len(document["records"])
    except (OSError, ValueError, KeyError, TypeError):
        # nothing there, or nothing of this command
        return
    if measured and (missing or unprofiled):
        raise ValueError(
            f"{path} holds {measured} rows of a run of today that lacks {len(missing)} rows and {len(unprofiled)} "
            f"profiles: go on with --resume {path}, or move it away to begin anew"
        )


def measure_rows(
    rows: Sequence[Row], results: Results, *, peers: Sequence[str], out_of_time: Callable[[], bool],
    report: Callable[[str], None], keep: Callable[[], None],
) -> None:  # fmt: skip
    """Measure every row that has no record yet, until time is up. A row that fails is kept as failed.

    `keep` is called behind each, so that a run which is cut off loses nothing.
    """
    device = torch.device("cuda")
    for position, row in enumerate(rows):
        name = row.name()
        if name in results.records:
            continue
        if out_of_time():
            return
        place = f"{position + 1}/{len(rows)} {name}"
        try:
            record = results.records[name] = bench.measure(row, device, peers=peers)
            results.failed.pop(name, None)
            ratio, eager_ratio = (record[f"{way}_ms"] / record["frozen_ms"] for way in ("ours", "eager"))
            report(f"{place}: ours/frozen {ratio:.3f}, eager/frozen {eager_ratio:.3f}")
        except Exception as error:
            results.failed[name] = _reason(error)
            report(f"{place}: failed, {results.failed[name]}")
        keep()
        _tidy(row, failed=name in results.failed)


def profile_missed(
    rows: Sequence[Row], results: Results, *, out_of_time: Callable[[], bool], report: Callable[[str], None],
    keep: Callable[[], None],
) -> None:  # fmt: skip
    """Profile, behind all timing (which a profiler would disturb), each shape that misses what it is held to."""
    missed = results.without_profile(rows)
    for position, row in enumerate(missed):
        if out_of_time():
            return
        shape = row.shape_name()
        try:
            results.profiles[shape] = bench.profile_passes(row, torch.device("cuda"))
            results.failed.pop(f"profile of {shape}", None)
            report(f"profile {position + 1}/{len(missed)} {shape}")
        except Exception as error:
            results.failed[f"profile of {shape}"] = _reason(error)
            report(f"profile {position + 1}/{len(missed)} {shape}: failed, {_reason(error)}")
        keep()
        _tidy(row, failed=shape not in results.profiles)


def document(rows: Sequence[Row], results: Results, *, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The results file. `facts`: command, GPU, date, versions, absent peers."""
    records = [results.records[name] for row in rows if (name := row.name()) in results.records]
    missing = results.missing(rows)
    return {
        **facts, "note": NOTE,
        "rows": {"in_grid": len(rows), "measured": len(records), "missing": missing},
        "failed": results.failed,
        "summary": bench_report.summary(records),
        "tried": {"source": "docs/log.md, Kernels", "entries": _tried()},
        "missed_without_profile": [row.shape_name() for row in results.without_profile(rows)],
        "profile_ms": results.profiles, "records": records,
    }  # fmt: skip


def absent_peers(rows: Sequence[Row], device: torch.device) -> dict[str, str]:
    """{peer that is not measured here: why}."""
    row = min(rows, key=lambda row: row.T * row.K)
    return bench_peers.absent_peers(make_data(row, device), row)


def _tried() -> list[str]:
    return bench_report.tried(LOG_FILE.read_text(encoding="utf-8")) if LOG_FILE.is_file() else []


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _tidy(row: Row, *, failed: bool) -> None:
    """Raises what the GPU raises once a kernel has gone astray: nothing can be measured behind that."""
    gc.collect()
    if failed or row.T * sum(row.N) > 3e8:
        torch.cuda.empty_cache()
    torch.cuda.synchronize()


__all__ = ["Results", "absent_peers", "check_whole", "document", "measure_rows", "profile_missed", "resumed"]
