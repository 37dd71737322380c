"""The jobs of a point: a job file, perhaps with fields set anew, or adapters by the lengths of their samples."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..planner.jobs import Job, job_from_lengths
from ..traces.workloads import DATASETS, read_lengths, sample_lengths
from .errors import SimulationError
from .point_fields import table, whole

_ADAPTER = ("name", "lengths", "num_samples", "global_batch_size", "max_tokens", "seed")


def point_jobs(job: Any, *, folder: Path) -> tuple[tuple[Job, ...], dict[str, Any]]:
    """Jobs, and what their file says of the pipeline (stages, replicas, microbatch_tokens, schedule).

    Raises InputError naming the field.
    """
    job = table(job if isinstance(job, Mapping) else {"file": job}, "job")
    if "file" in job:
        return _jobs_of_file(job, folder)
    adapters = table(job, "job", ("adapters",)).get("adapters")
    if not isinstance(adapters, list) or not adapters:
        raise SimulationError(f"job.adapters={adapters!r} must be a list of tables with lengths and global_batch_size")
    return tuple(
        _job(number, table(held, f"job.adapters.{number}", _ADAPTER), folder) for number, held in enumerate(adapters)
    ), {}


def _job(number: int, given: Mapping[str, Any], folder: Path) -> Job:
    place = f"job.adapters.{number}"
    source = str(given.get("lengths", ""))
    count = given.get("num_samples")
    if source in DATASETS:
        lengths = sample_lengths(
            source,
            num_samples=whole(count or 256, f"{place}.num_samples"),
            seed=whole(given.get("seed", number), f"{place}.seed", least=0),
        )
    else:
        _check_source(source, place=place, folder=folder)
        lengths = read_lengths(folder / source)[: whole(count, f"{place}.num_samples") if count else None]
    if "max_tokens" in given:
        most = whole(given["max_tokens"], f"{place}.max_tokens")
        lengths = tuple(min(length, most) for length in lengths)
    return job_from_lengths(
        adapter=number,
        name=str(given.get("name", f"{Path(source).stem}-{number}")),
        lengths=lengths,
        global_batch_size=whole(given.get("global_batch_size", 16), f"{place}.global_batch_size"),
    )


def _check_source(source: str, *, place: str, folder: Path) -> None:
    if not source or not (folder / source).is_file():
        raise SimulationError(
            f"{place}.lengths={source!r} is neither a file in {folder} nor a known data set; those are "
            f"{', '.join(sorted(DATASETS))}"
        )


def _jobs_of_file(job: Mapping[str, Any], folder: Path) -> tuple[tuple[Job, ...], dict[str, Any]]:
    from ..planner.inputs.load_jobs import load_jobs

    path = folder / str(job["file"])
    changes = {name: held for name, held in job.items() if name != "file"}
    if not changes:
        loaded = load_jobs(path, allow_lengths=True)
    else:
        # Written beside the original, since data files are named relative to it.
        text = yaml.safe_dump(_changed(yaml.safe_load(path.read_text(encoding="utf-8")), changes), sort_keys=False)
        handle, name = tempfile.mkstemp(prefix=".sweep-", suffix=".yaml", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            loaded = load_jobs(Path(name), allow_lengths=True)
        finally:
            Path(name).unlink(missing_ok=True)
    settings = loaded.settings
    return loaded.jobs, {
        "stages": settings.num_stages,
        "replicas": settings.num_replicas,
        "microbatch_tokens": settings.microbatch_tokens,
        "schedule": settings.schedule,
    }


def _changed(document: Any, changes: Mapping[str, Any]) -> Any:
    # Tables merge; a table over a list changes the entries it names, by their `name` or their number.
    if isinstance(document, list):
        known = {str(entry.get("name", number)): number for number, entry in enumerate(document)}
        entries = list(document)
        for name, held in changes.items():
            if str(name) not in known:
                raise SimulationError(f"job: '{name}' is none of {sorted(known)}; name one of them")
            entries[known[str(name)]] = _changed(document[known[str(name)]], held)
        return entries
    merged = dict(document or {})
    for name, held in changes.items():
        inside = isinstance(held, Mapping) and isinstance(merged.get(name), dict | list)
        merged[name] = _changed(merged[name], held) if inside else held
    return merged
