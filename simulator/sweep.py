"""Running a sweep: points in parallel, finished ones on disk at once, so that a second run goes on where it stopped."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from ..planner.packing.parallel import side_by_side
from ..traces.counted import counted
from ..traces.files import write_atomically
from .errors import SimulationError
from .point import file_digests, plan_key, point_key, run_points
from .sweep_file import Point, Sweep

POINTS = "points.jsonl"
TABLE = "sweep.csv"
PARQUET = "sweep.parquet"
_TASKS_PER_WORKER = 8
_MOST_PER_TASK = 256
"""Points that one worker takes at a time share a plan, so many are good; the progress bar wants them few."""
RESULTS = (
    "makespan_ms",
    "tokens_per_s",
    "bubble_ratio",
    "peak_memory_bytes",
    "fits_in_memory",
    "num_microbatches",
    "program",
    "error",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """Points that share a plan."""

    folder: Path
    keys: tuple[str, ...]
    contents: tuple[Mapping[str, Any], ...]


def run_sweep(
    sweep: Sweep,
    *,
    folder: Path,
    workers: int = 1,
    backend: str = "loky",
    progress: Callable[[str, float], None] | None = None,
) -> pd.DataFrame:
    """All points of a sweep as a tidy table: one column an axis, then RESULTS; also written to `folder`.

    Points that `folder` already holds (same fields, same files) are not run again. A point that cannot be run says why
    in `error`. Raises SimulationError where `folder` holds something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    inputs = sweep.path.parent
    digests = file_digests(dict(sweep.base), folder=inputs)
    points = list(sweep.points())
    keys = [point_key(point.content, files=digests) for point in points]
    known = _finished(folder / POINTS)
    todo = [(key, point) for key, point in zip(keys, points, strict=True) if key not in known]
    tasks = list(_tasks(todo, inputs, workers=workers))
    done = len(points) - len(todo)
    with (folder / POINTS).open("a", encoding="utf-8") as file:
        for results in side_by_side(_run, tasks, workers=workers, backend=backend):
            for key, result in results:
                known[key] = result
                file.write(json.dumps({"key": key, **result}) + "\n")
            file.flush()
            done += len(results)
            if progress:
                progress(f"{done:,} of {counted(len(points), 'point')}", done / len(points))
    table = pd.DataFrame([_row(point, known[key]) for key, point in zip(keys, points, strict=True)])
    _write(table, folder)
    return table


def ranked(table: pd.DataFrame, *, count: int = 10) -> pd.DataFrame:
    """The points with most tokens a second, those that fit into memory first."""
    good = table[table["error"].isna()]
    return good.sort_values(["fits_in_memory", "tokens_per_s"], ascending=[False, False], kind="stable").head(count)


def _tasks(todo: Sequence[tuple[str, Point]], folder: Path, *, workers: int) -> Iterator[_Task]:
    size = max(1, min(_MOST_PER_TASK, -(-len(todo) // (_TASKS_PER_WORKER * workers))))
    by_plan = sorted(((plan_key(point.content), key, point) for key, point in todo), key=lambda entry: entry[:2])
    for _, group in groupby(by_plan, key=lambda entry: entry[0]):
        members = list(group)
        for first in range(0, len(members), size):
            part = members[first : first + size]
            yield _Task(
                folder=folder,
                keys=tuple(key for _, key, _ in part),
                contents=tuple(point.content for _, _, point in part),
            )


def _run(task: _Task) -> list[tuple[str, dict[str, Any]]]:
    return list(zip(task.keys, run_points(task.contents, folder=task.folder), strict=True))


def _finished(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    if not path.exists():
        return found
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            found[entry.pop("key")] = entry
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            if number >= len(lines) - 1:
                # The last line of a run that was killed while writing it: cut it off and run that point again.
                write_atomically(path, "\n".join(lines[: number - 1]) + ("\n" if number > 1 else ""))
                break
            raise SimulationError(
                f"{path}:{number}: is no result of a sweep ({error}); give another folder or remove the file"
            ) from error
    return found


def _row(point: Point, result: Mapping[str, Any]) -> dict[str, Any]:
    plain = {
        name: value if isinstance(value, int | float | str | bool) else json.dumps(value)
        for name, value in point.chosen.items()
    }
    return plain | {name: result.get(name) for name in RESULTS}


def _write(table: pd.DataFrame, folder: Path) -> None:
    write_atomically(folder / TABLE, table.to_csv(index=False))
    try:
        import pyarrow  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        return
    # One type a column: Parquet knows no mixed ones.
    mixed = [name for name in table.columns if table[name].dtype == object]
    unfinished = folder / f".{PARQUET}.tmp"
    table.astype(dict.fromkeys(mixed, "string")).to_parquet(unfinished, index=False)
    unfinished.replace(folder / PARQUET)
