"""The command line's share of this room: `loraplex bench kernels` and `loraplex tune`."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from ..planner.options import RESULTS, ResultsFolder
from ..traces.errors import InputError


def bench_kernels(
    output: ResultsFolder = RESULTS,
    grid: Annotated[Path | None, typer.Option(help="A grid file in place of the committed one.")] = None,
    profile: Annotated[bool, typer.Option(help="Profile every shape that misses the goal, pass by pass.")] = True,
) -> None:
    """Measure the fused LoRA linear against the frozen linear, eager and compiled LoRA on this GPU.

    Checks forward and gradients first and times nothing if they are wrong. Writes JSON, CSV and a bar plot.
    """
    _need_gpu("bench kernels")
    import torch

    from . import bench, bench_report
    from .tuning import slug, versions

    rows = bench.read_grid(grid) if grid is not None else bench.read_grid()
    absent = bench.absent_peers(rows, torch.device("cuda"))
    peers = [name for name in ("unsloth",) if name not in absent]
    records = bench.run_grid(rows, peers=peers, report=typer.echo)
    gpu, date = torch.cuda.get_device_name(), datetime.date.today().isoformat()
    document: dict[str, Any] = {
        "command": "loraplex bench kernels" + ("" if grid is None else f" --grid {grid.name}"),
        "gpu": gpu, "date": date, "versions": versions(),
        "absent_peers": absent,
        "note": "q/k/v and gate/up are one call on one input and share one dropout mask; ours is banked_linears, which "
        "adds the adapters' gradients to float32 sums, lists is multi_lora_linears; frozen is one GEMM of the linears' "
        "joined weights, forward and, where the direction is both, the gradient of the input; eager is PEFT's "
        "arithmetic linear by linear; bf16 throughout; median of interleaved runs, two inputs in turn.",
        "summary": bench_report.summary(records),
    }  # fmt: skip
    if profile:
        slow = {(r["linear"], r["T"], r["dropout"], r["num_adapters"]) for r in bench_report.missed(records)}
        document["profile_ms"] = {
            f"{row.linear} T={row.T} p={row.dropout} adapters={row.num_adapters}": bench.profile_passes(
                row, torch.device("cuda")
            )
            for row in rows
            if row.goal and row.T == 8192 and (row.linear, row.T, row.dropout, row.num_adapters) in slow
        }
    for name, value in bench_report.summary(records).items():
        typer.echo(f"{name}: {value}")
    document["records"] = records
    for path in bench_report.write_results(output, f"kernels-{slug(gpu)}-{date}", document):
        typer.echo(f"wrote {path}")


def tune(
    output: Annotated[Path | None, typer.Option(help="Where to write; default: the user's cache folder.")] = None,
) -> None:
    """Measure block sizes on this GPU and keep the best for every later run."""
    _need_gpu("tune")
    import torch

    from .tune import tune_gpu
    from .tuning import cache_file, write_tuned

    gpu = torch.cuda.get_device_name()
    entries = tune_gpu(report=typer.echo)
    path = cache_file(gpu) if output is None else output
    write_tuned(path, gpu, datetime.date.today().isoformat(), entries)
    typer.echo(f"wrote {path}")


def _need_gpu(command: str) -> None:
    """Refuse, with what is missing, where there is no CUDA GPU."""
    try:
        import torch
        import triton  # noqa: F401 (only to see that it is there)
    except ImportError as error:
        raise InputError(f"{command} needs torch and triton ({error}): pip install 'loraplex[train]'") from error
    if not torch.cuda.is_available():
        raise InputError(f"{command} needs a CUDA GPU, and torch sees none: run it on a machine with one")
