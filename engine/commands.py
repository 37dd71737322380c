"""The command line's share of the engine: `train`."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    job_file: Annotated[Path, typer.Argument(help="A jobs.yaml.", show_default=False)],
    plan: Annotated[Path | None, typer.Option(help="Its plan.", show_default="made now")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output folder.", show_default="the job file's output_dir")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint.")] = False,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Microbatches between checkpoints.", min=1, show_default="none are written")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object (times in ms).")] = False,
) -> None:
    """Train all adapters of a job file on this machine: one process per pipeline stage, adapters ready for PEFT."""
    import json as json_module
    import sys

    from rich.console import Console

    from .errors import STOPPED, EngineError, InterruptedRunError
    from .prepare import RunSettings
    from .show import LoadBars, train_table
    from .train import train as run

    settings = RunSettings(
        job_file=job_file, plan_file=plan, output_dir=output, resume=resume, checkpoint_every=checkpoint_every
    )
    try:
        with LoadBars() as bars:
            done = run(settings, progress=bars.advance, before_launch=bars.close)
    except EngineError as error:
        print(f"loraplex: {error}", file=sys.stderr)
        if checkpoint_every is not None:
            print(f"loraplex: go on with loraplex train {job_file} --resume", file=sys.stderr)
        raise typer.Exit(STOPPED if isinstance(error, InterruptedRunError) else 1) from None
    if json:
        print(json_module.dumps(done.summary()))
    else:
        Console(soft_wrap=True).print(train_table(done))
