"""The command line's share of this room: `loraplex bench kernels` and `loraplex tune`."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..planner.options import RESULTS, Json, JsonMsBytes, ResultsFolder
from ..traces.errors import InputError


def bench_kernels(
    output: ResultsFolder = RESULTS,
    grid: Annotated[Path | None, typer.Option(help="A grid file in place of the committed one.")] = None,
    profile: Annotated[bool, typer.Option(help="Profile every shape that misses the goal, pass by pass.")] = True,
    seconds: Annotated[
        float | None,
        typer.Option(help="Begin nothing new after so many seconds.", min=1.0, show_default="until it is done"),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Results file of an unfinished run on this GPU: measure what it lacks.")
    ] = None,
    json: JsonMsBytes = False,
) -> None:
    """Measure the fused LoRA linear against the frozen linear, eager and compiled LoRA on this GPU.

    Checks forward and gradients first and times nothing if they are wrong. Writes JSON (row by row), CSV and a bar
    plot; ends with exit code 1 where a row, or the profile of one that misses the goal, is missing.
    """
    import json as json_module
    import time

    began = time.monotonic()
    _need_gpu("bench kernels")

    def out_of_time() -> bool:
        return seconds is not None and time.monotonic() - began >= seconds

    document, paths = _measured(
        output, grid, resume, profile=profile, out_of_time=out_of_time, report=lambda line: typer.echo(line, err=json)
    )
    whole = _tell(document, paths, profiled=profile, json=json)
    if json:
        print(json_module.dumps(document))
    if not whole:
        raise typer.Exit(1)


def _measured(
    output: Path, grid: Path | None, resume: Path | None, *, profile: bool, out_of_time: Callable[[], bool],
    report: Callable[[str], None],
) -> tuple[dict[str, Any], list[Path]]:  # fmt: skip
    """The results document and the files it was written to."""
    import torch

    from ..engine.garbage import collecting_when_told
    from . import bench, bench_report, bench_run
    from .tuning import slug, versions

    gpu, date = torch.cuda.get_device_name(), datetime.date.today().isoformat()
    try:
        rows = bench.read_grid(grid) if grid is not None else bench.read_grid()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{grid}: {error}: a grid is a list of rows like kernels/bench_grid.json") from error
    stem = f"kernels-{slug(gpu)}-{date}"
    try:
        if resume is None:
            bench_run.check_whole(output / f"{stem}.json")
        results = bench_run.Results() if resume is None else bench_run.resumed(resume, gpu=gpu, versions=versions())
    except ValueError as error:
        raise InputError(str(error)) from error
    bench.gate(torch.device("cuda"))
    absent = bench_run.absent_peers(rows, torch.device("cuda"))
    facts: dict[str, Any] = {
        "command": "loraplex bench kernels" + ("" if grid is None else f" --grid {grid.name}"),
        "gpu": gpu, "date": date, "versions": versions(), "absent_peers": absent,
    }  # fmt: skip

    def keep() -> None:
        bench_report.write_json(output / f"{stem}.json", bench_run.document(rows, results, facts=facts))

    peers = [name for name in ("unsloth",) if name not in absent]
    # torch's own million objects would be walked behind every row, and in the midst of some
    with collecting_when_told():
        bench_run.measure_rows(rows, results, peers=peers, out_of_time=out_of_time, report=report, keep=keep)
        if profile:
            bench_run.profile_missed(rows, results, out_of_time=out_of_time, report=report, keep=keep)
    document = bench_run.document(rows, results, facts=facts)
    return document, bench_report.write_results(output, stem, document)


def _tell(document: dict[str, Any], paths: Sequence[Path], *, profiled: bool, json: bool) -> bool:
    """The summary, what is missing, and where all of it stands. True where nothing is missing."""
    for name, value in document["summary"].items():
        typer.echo(f"{name}: {value}", err=json)
    for path in paths:
        typer.echo(f"wrote {path}", err=json)
    for name, why in document["failed"].items():
        typer.echo(f"failed: {name}: {why}", err=True)
    missing, unprofiled = document["rows"]["missing"], document["missed_without_profile"]
    whole = not (missing or (profiled and unprofiled))
    if not whole:
        typer.echo(
            f"{len(missing)} of {document['rows']['in_grid']} rows and {len(unprofiled)} profiles are missing: "
            f"go on with --resume {paths[0]}", err=True,
        )  # fmt: skip
    return whole


def tune(
    output: Annotated[Path | None, typer.Option(help="Where to write; default: the user's cache folder.")] = None,
    json: Json = False,
) -> None:
    """Measure block sizes on this GPU and keep the best for every later run."""
    import json as json_module

    _need_gpu("tune")
    import torch

    from .tune import tune_gpu
    from .tuning import cache_file, tuned_document, write_tuned

    gpu = torch.cuda.get_device_name()
    entries = tune_gpu(report=lambda line: typer.echo(line, err=json))
    path = cache_file(gpu) if output is None else output
    document = tuned_document(gpu, datetime.date.today().isoformat(), entries)
    write_tuned(path, document)
    typer.echo(f"wrote {path}", err=json)
    if json:
        print(json_module.dumps({**document, "file": str(path)}))


def _need_gpu(command: str) -> None:
    """Refuse, with what is missing, where there is no CUDA GPU."""
    try:
        import torch
        import triton  # noqa: F401 (only to see that it is there)
    except ImportError as error:
        raise InputError(f"{command} needs torch and triton ({error}): pip install 'loraplex[train]'") from error
    if not torch.cuda.is_available():
        raise InputError(f"{command} needs a CUDA GPU, and torch sees none: run it on a machine with one")
