"""The command line's share of the engine: `train`, `profile`, `parity`, `merge`."""

from pathlib import Path
from typing import Annotated

import typer

from ..planner.options import Device, DrawnWeights, JobFile, Json, JsonMs, PlanOfJobs, Recompute
from ..traces.counted import counted


def train(
    job_file: JobFile,
    plan: PlanOfJobs = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output folder.", show_default="the job file's output_dir")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew where the output folder has checkpoints, and remove them.")
    ] = False,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Microbatches between checkpoints.", min=1, show_default="none are written")
    ] = None,
    device: Device = "auto",
    recompute: Recompute = None,
    profile: Annotated[
        str | None,
        typer.Option(help="Cost profile to plan and to count memory by.", show_default="the model's shapes"),
    ] = None,
    report_to: Annotated[
        list[str] | None, typer.Option(help="tensorboard or wandb, or both.", show_default="the job file's")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Draw the base model's weights; lengths become random tokens.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="A config.json in place of base_model.", show_default="the job file's model")
    ] = None,
    json: JsonMs = False,
) -> None:
    """Train all adapters of a job file on this machine: one process per pipeline stage, adapters ready for PEFT."""
    import json as json_module
    import shlex
    import sys
    from dataclasses import replace

    from rich.console import Console

    from ..planner.inputs.override import Override
    from ..planner.inputs.read_jobfile import read_jobfile
    from ..traces.memory_costs import recompute_choice

    # Before torch, whose import takes seconds: a mistake in the file is told at once.
    read_jobfile(job_file)
    from .errors import STOPPED, EngineError, InterruptedRunError
    from .loggers import logger_names
    from .run_settings import RunSettings
    from .show import LoadBars, ranking_table, train_line, train_table
    from .train import train as run

    settings = RunSettings(
        job_file=job_file,
        plan_file=plan,
        output_dir=output,
        resume=resume,
        overwrite=overwrite,
        checkpoint_every=checkpoint_every,
        device=device,
        recompute=None if recompute is None else recompute_choice(recompute),
        report_to=logger_names(report_to or ()),
        profile=profile,
        override=Override(random_weights=random_weights, config_file=config),
    )
    try:
        with LoadBars() as bars:
            done = run(
                settings,
                progress=bars.advance,
                before_launch=bars.close,
                tell=lambda text: print(f"loraplex: {text}", file=sys.stderr),
            )
    except EngineError as error:
        print(f"loraplex: {error}", file=sys.stderr)
        if checkpoint_every is not None:
            # All that was asked: without --checkpoint-every, say, the next interruption would lose everything.
            words = ["loraplex", "train", *replace(settings, resume=True, overwrite=False).arguments()]
            words += [] if profile is None else ["--profile", profile]
            print(f"loraplex: go on with {shlex.join(words)}", file=sys.stderr)
        raise typer.Exit(STOPPED if isinstance(error, InterruptedRunError) else 1) from None
    for warning in filter(None, (adapter.warning() for adapter in done.adapters)):
        print(f"loraplex: warning: {warning}", file=sys.stderr)
    if json:
        print(json_module.dumps(done.summary(), allow_nan=False))
    else:
        console = Console(soft_wrap=True)
        next_command = shlex.join(["loraplex", "report", str(done.output_dir)])
        console.print(train_line(done), markup=False, highlight=False)
        for table in (train_table(done), *map(ranking_table, done.rankings)):
            console.print(table)
        console.print(
            f"PEFT adapters: {done.adapters[0].folder.parent}. Next: {next_command}",
            markup=False,
            highlight=False,
        )
    if all(adapter.quarantined_at is not None for adapter in done.adapters):
        print("loraplex: every adapter was quarantined: nothing is trained to its end", file=sys.stderr)
        raise typer.Exit(1)


def profile(
    model: Annotated[str, typer.Argument(help="A model folder, a hub id, tiny, or a shape.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.", show_default=False)],
    job: Annotated[
        Path | None,
        typer.Option(help="Measure with the adapters and lengths of this jobs.yaml.", show_default="r = 16"),
    ] = None,
    device: Device = "auto",
    stages: Annotated[
        int | None,
        typer.Option(help="Processes side by side.", min=1, show_default="the job's, else 2, on a GPU 1"),
    ] = None,
    microbatch_tokens: Annotated[
        int | None,
        typer.Option(help="Largest microbatch, in tokens.", min=2, show_default="the job's, else 1024, on a GPU 16384"),
    ] = None,
    layers: Annotated[int, typer.Option(help="On a GPU: so many layers, and twice as many, stand for all.", min=1)] = 2,
    random_weights: DrawnWeights = False,
    load_in_4bit: Annotated[
        bool, typer.Option("--load-in-4bit", help="Hold the layers' linears in 4 bits, as the job file's field does.")
    ] = False,
    json: JsonMs = False,
) -> None:
    """Measure what this machine takes for the work of a stage, and write it as a cost profile."""
    import json as json_module
    import sys

    from rich.console import Console

    from ..planner.inputs.read_jobfile import read_jobfile
    from .devices import resolved_device
    from .errors import STOPPED, EngineError, InterruptedRunError
    from .profile import profile_model

    device = resolved_device(device)
    fields = read_jobfile(job).fields if job is not None else None
    default_stages, default_tokens = (1, 16384) if device == "cuda" else (2, 1024)
    console = Console(stderr=True)
    try:
        with console.status("measuring, about a minute"):
            made = profile_model(
                model,
                output=output,
                job_file=job,
                random_weights=random_weights,
                load_in_4bit=load_in_4bit,
                num_stages=stages or (fields.pipeline.stages if fields else default_stages),
                capacity_tokens=microbatch_tokens
                or ((fields.microbatch_tokens or fields.sequence_len) if fields else default_tokens),
                device=device,
                depth=layers,
            )
    except EngineError as error:
        print(f"loraplex: {error}", file=sys.stderr)
        raise typer.Exit(STOPPED if isinstance(error, InterruptedRunError) else 1) from None
    if json:
        # As in the file, where no limit is said by leaving it out: JSON knows no infinity.
        print(json_module.dumps(json_module.loads(output.read_text(encoding="utf-8")), allow_nan=False))
    else:
        median, worst = 100 * (made.fit_error_median or 0.0), 100 * (made.fit_error_worst or 0.0)
        told = "".join(f"\n  {size}: {one.told()}" for size, one in made.fit_errors.items())
        if made.steady_forward_factor is not None and made.steady_backward_factor is not None:
            forward, backward = 100 * (made.steady_forward_factor - 1), 100 * (made.steady_backward_factor - 1)
            told += f"\n  a GPU at work for seconds is {forward:.1f} % slower than in the rounds in forwards, "
            told += f"{backward:.1f} % in backwards; the costs are its"
        Console(soft_wrap=True).print(
            f"Wrote {output}: {made.source}. Microbatches that the fit had not seen are foretold within {median:.1f} % "
            f"(median; worst {worst:.1f} %).{told}",
            markup=False,
            highlight=False,
        )


def parity(
    job_file: JobFile,
    steps: Annotated[int, typer.Option(help="Optimizer steps of each adapter to compare.", min=1)] = 10,
    dtype: Annotated[
        str, typer.Option(help="float32, float64 (CPU only, the sharpest), or bfloat16 (losses are compared).")
    ] = "float32",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train each adapter alone with stock transformers and peft and all together here; print how far they end apart.

    Exit code 1 if any ends further apart than rounding explains.
    """
    import json as json_module
    import tempfile
    from dataclasses import asdict

    from ..planner.inputs.read_jobfile import read_jobfile

    # Before torch, whose import takes seconds: a mistake in the file is told at once.
    read_jobfile(job_file)
    import torch
    from rich.console import Console

    from ..planner.inputs.load_jobs import load_jobs
    from ..traces.errors import InputError
    from .base_folder import base_model_folder
    from .devices import choose_device
    from .parity import check_parity
    from .show import LoadBars, parity_table
    from .weight_source import WeightSource

    dtypes = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
    if dtype not in dtypes:
        raise InputError(f"--dtype {dtype} is unknown; choose {', '.join(dtypes)}")
    place = choose_device("cpu" if dtype == "float64" and device == "auto" else device)
    if dtype == "float64" and place.type != "cpu":
        raise InputError(f"--dtype float64 --device {device}: the fused kernels know no float64; use --device cpu")
    with LoadBars() as bars, tempfile.TemporaryDirectory(prefix="loraplex-parity-") as folder:
        loaded = load_jobs(job_file, progress=bars.advance)
        base = base_model_folder(loaded.settings.base_model, output_dir=Path(folder))
        weights = WeightSource.of(loaded.settings.base_model)
        rows = check_parity(
            loaded,
            base,
            num_steps=steps,
            source=weights,
            dtype=dtypes[dtype],
            device=place,
            progress=bars.advance,
        )
    equal = all(row.is_equal() for row in rows)
    if json:
        found = {"equal": equal, "dtype": dtype, "device": place.type, "rows": [asdict(row) for row in rows]}
        print(json_module.dumps(found))
    else:
        Console(soft_wrap=True).print(parity_table(rows))
    if not equal:
        raise typer.Exit(1)


def merge(
    base: Annotated[str, typer.Argument(help="A model folder or a hub id.", show_default=False)],
    adapter: Annotated[Path, typer.Argument(help="Folder of a PEFT LoRA adapter.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make.", show_default=False)],
    json: Json = False,
) -> None:
    """Fold an adapter into its base model and write an ordinary model folder, one file of weights at a time."""
    import json as json_module
    import sys
    import tempfile

    from rich.console import Console

    from ..planner.inputs.base_model import find_base_model
    from .base_folder import base_model_folder
    from .errors import EngineError
    from .merge import merge as run
    from .show import LoadBars

    try:
        with LoadBars() as bars, tempfile.TemporaryDirectory(prefix="loraplex-merge-") as folder:
            found = base_model_folder(find_base_model(base, relative_to=Path.cwd()), output_dir=Path(folder))
            done = run(found, adapter, output=output, progress=bars.advance)
    except EngineError as error:
        print(f"loraplex: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if json:
        print(json_module.dumps(done.summary()))
    else:
        Console(soft_wrap=True).print(
            f"Wrote {done.folder}: {counted(done.num_linears, 'linear')} changed, {counted(done.num_files, 'file')} of "
            f"weights, {done.num_bytes / 2**20:.1f} MiB",
            markup=False,
            highlight=False,
        )
