"""Jobs from token lengths alone: `--lengths NAME=FILE.csv`, no text, no tokenizer, no torch."""

from collections.abc import Sequence
from pathlib import Path

from ...traces.counted import counted
from ...traces.workloads import read_lengths
from ..errors import JobError
from ..jobs import Job, job_from_lengths
from .adapter_name import clash_fault, name_fault

OVERLONG = ("error", "truncate", "skip")


def jobs_from_lengths(
    sources: Sequence[str],
    *,
    global_batch_sizes: Sequence[int],
    num_batches: Sequence[int],
    microbatch_tokens: int,
    overlong: str = "error",
) -> tuple[Job, ...]:
    """One job per `NAME=FILE.csv`. Sizes and counts are one for all or one per source; no count takes the whole file.

    Raises JobError naming the adapter, TraceError naming the file and line.
    """
    sizes = _per_source("global-batch-size", global_batch_sizes, count=len(sources))
    counts = _per_source("num-batches", num_batches, count=len(sources)) if num_batches else [None] * len(sources)
    jobs: list[Job] = []
    for adapter, (source, size, count) in enumerate(zip(sources, sizes, counts, strict=True)):
        name, mark, path = source.partition("=")
        if not (name and mark and path):
            raise JobError(f"--lengths {source!r} must be NAME=FILE.csv, e.g. --lengths poems=poems.csv")
        faults = (name_fault(name), *(clash_fault(name, job.name) for job in jobs))
        if any(faults):
            raise JobError(f"--lengths {source!r}: {name!r}: {next(filter(None, faults))}; choose another name")
        lengths = fitted_lengths(
            read_lengths(Path(path)), limit=microbatch_tokens, overlong=overlong, where=f"{name} ({path})"
        )
        needed = len(lengths) if count is None else size * count
        if needed > len(lengths):
            raise JobError(
                f"adapter '{name}': {counted(count or 0, 'batch')} of {size} need {counted(needed, 'sample')}; "
                f"{path} has {len(lengths)}: lower --num-batches or --global-batch-size"
            )
        jobs.append(job_from_lengths(adapter=adapter, name=name, lengths=lengths[:needed], global_batch_size=size))
    return tuple(jobs)


def fitted_lengths(lengths: Sequence[int], *, limit: int, overlong: str, where: str) -> tuple[int, ...]:
    """Lengths of at most `limit` tokens: longer samples cut, left out, or refused with their count."""
    if overlong not in OVERLONG:
        raise JobError(f"overlong={overlong!r} is unknown; choose one of {', '.join(OVERLONG)}")
    num_long = sum(length > limit for length in lengths)
    if overlong == "truncate":
        return tuple(min(length, limit) for length in lengths)
    if overlong == "skip":
        kept = tuple(length for length in lengths if length <= limit)
        if not kept:
            raise JobError(f"{where}: no sample of {num_long} has at most {limit} tokens; raise --microbatch-tokens")
        return kept
    if num_long:
        raise JobError(
            f"{where}: {num_long} of {counted(len(lengths), 'sample')} exceed microbatch_tokens={limit}, the longest "
            f"{max(lengths)} (sample {lengths.index(max(lengths))}); raise --microbatch-tokens or choose --overlong "
            "truncate or skip"
        )
    return tuple(lengths)


def _per_source(name: str, values: Sequence[int], *, count: int) -> list[int]:
    for value in values:
        if value < 1:
            raise JobError(f"--{name} {value} must be at least 1; raise it")
    if len(values) not in (1, count):
        raise JobError(
            f"--{name} is given {counted(len(values), 'time')} for {count} --lengths; give one for all or one for each"
        )
    return list(values) * count if len(values) == 1 else list(values)
