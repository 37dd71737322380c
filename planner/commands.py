"""The command line's share of planning: `init`, `data show`, and what comes before and after a plan."""

from pathlib import Path
from typing import Annotated

import typer

from ..traces.counted import counted
from .options import JobFile, Json
from .overhead import OVERHEAD_TOKENS


def init(
    path: Annotated[Path, typer.Argument(help="File to write; never overwritten.")] = Path("jobs.yaml"),
    json: Json = False,
) -> None:
    """Write a commented jobs.yaml that works as it is: three adapters on built-in texts and the built-in tiny model."""
    import json as json_module
    import shlex

    from rich.console import Console

    from .inputs.job_template import write_job_template

    write_job_template(path)
    if json:
        print(json_module.dumps({"job_file": str(path)}))
    else:
        typed = shlex.quote(str(path))
        Console().print(
            f"Wrote {path}. Next: loraplex data show {typed}, then loraplex plan {typed}", markup=False, soft_wrap=True
        )


def data_show(
    job_file: JobFile,
    adapter: Annotated[str | None, typer.Option(help="Only this adapter.", show_default="all")] = None,
    sample: Annotated[int, typer.Option(help="Which sample, counted from 0 in training order.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object (lengths in tokens).")] = False,
) -> None:
    """Print one sample of each adapter as the model will read it, with what is learned marked."""
    import json as json_module

    from rich.console import Console
    from rich.progress import Progress, TaskID

    from .inputs.load_jobs import load_jobs
    from .inputs.shown_sample import samples_as_json, samples_as_text, shown_samples

    watched = Console(stderr=True)
    with Progress(console=watched, transient=True, disable=not watched.is_interactive) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(label: str, share: float) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=1.0)
            bars.update(tasks[label], completed=share)

        loaded = load_jobs(job_file, progress=advance)
        shown = shown_samples(loaded, index=sample, adapter=adapter)
    if json:
        print(json_module.dumps(samples_as_json(loaded, shown)))
    else:
        Console(soft_wrap=True).print(samples_as_text(loaded, shown))


def plan(
    job_file: Annotated[Path | None, typer.Argument(help="A jobs.yaml; or give --lengths.", show_default=False)] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Plan file to write.")] = Path("plan.json"),
    lengths: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE.csv: an adapter by its sample lengths alone (column num_tokens); repeatable."),
    ] = None,
    global_batch_size: Annotated[
        list[int] | None, typer.Option(help="Samples a step, with --lengths: one for all or one for each.")
    ] = None,
    num_batches: Annotated[
        list[int] | None,
        typer.Option(help="Steps, with --lengths: one for all or one for each.", show_default="the whole file"),
    ] = None,
    overlong: Annotated[str, typer.Option(help="With --lengths, longer samples: error, truncate or skip.")] = "error",
    stages: Annotated[int | None, typer.Option(help="Pipeline stages.", show_default="the job file's, or 1")] = None,
    replicas: Annotated[
        int | None, typer.Option(help="Pipelines side by side.", show_default="the job file's, or 1")
    ] = None,
    microbatch_tokens: Annotated[
        list[int] | None,
        typer.Option(
            help="Tokens a microbatch may hold; given several times, the fastest under --profile is chosen.",
            show_default="the job file's",
        ),
    ] = None,
    pad_multiple: Annotated[int, typer.Option(help="Round each adapter's share of a microbatch up to this.")] = 1,
    schedule: Annotated[
        str | None, typer.Option(help="Order of forwards and backwards.", show_default="the job file's, or 1f1b")
    ] = None,
    strategy: Annotated[str, typer.Option(help="auto, milp, greedy or stream.")] = "auto",
    objective: Annotated[str, typer.Option(help="makespan, microbatches or fair.")] = "makespan",
    profile: Annotated[
        str | None,
        typer.Option(
            help=f"Cost profile: file or name. Without, a microbatch of a job file costs {OVERHEAD_TOKENS:,} tokens "
            "more than it has; with --lengths, all cost the same."
        ),
    ] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds to search at most.")] = 30.0,
    solver: Annotated[str, typer.Option(help="For milp: auto, cbc or highs.")] = "auto",
    workers: Annotated[int, typer.Option(help="Processes, for large plans.")] = 1,
    backend: Annotated[str, typer.Option(help="Joblib backend of the processes: loky, dask or ray.")] = "loky",
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object (times in s, lengths in tokens).")
    ] = False,
) -> None:
    """Plan which samples share a microbatch and in which order they enter the pipeline. Ctrl-C keeps the best found."""
    import json as json_module
    import shlex

    from rich.console import Console

    from .plan_command import PlanRequest, make_requested_plan
    from .plan_file import save_plan
    from .plan_report import plan_as_json, plan_line, plan_table

    request = PlanRequest(
        job_file=job_file,
        lengths=tuple(lengths or ()),
        global_batch_sizes=tuple(global_batch_size or ()),
        num_batches=tuple(num_batches or ()),
        overlong=overlong,
        num_stages=stages,
        num_replicas=replicas,
        capacities=tuple(microbatch_tokens or ()),
        pad_multiple=pad_multiple,
        schedule=schedule,
        strategy=strategy,
        objective=objective,
        profile=profile,
        time_limit_s=time_limit,
        solver=solver,
        workers=workers,
        backend=backend,
    )
    made, trials = make_requested_plan(request)
    save_plan(made, output)
    if json:
        told = plan_as_json(made, valid=not made.verify()) | {"plan": str(output)}
        print(json_module.dumps(told))
        return
    console = Console(soft_wrap=True)
    console.print(plan_line(made), markup=False)
    console.print(plan_table(made))
    for trial in trials:
        console.print(
            f"microbatch_tokens={trial.microbatch_tokens}: {trial.makespan_ms:,.1f} ms predicted", markup=False
        )
    for record in made.solver:
        if record.instance == "plan":
            console.print(f"note: {record.status}", markup=False)
    costs = ["--profile", profile] if profile else ["--uniform", "1,2"]
    then = shlex.join(["loraplex", "simulate", str(output), *costs])
    if job_file is not None:
        then = f"{shlex.join(['loraplex', 'train', str(job_file), '--plan', str(output)])}, or {then}"
    console.print(f"Wrote {output}. Next: {then}", markup=False)


def check(
    plan_file: Annotated[Path, typer.Argument(help="A plan file.", show_default=False)],
    json: Json = False,
) -> None:
    """Check a plan from scratch and print every violation. Exit code 1 if there is any."""
    import json as json_module

    from rich.console import Console

    from .plan_check import check_plan_file

    found = check_plan_file(plan_file)
    if json:
        print(json_module.dumps(found.to_json()))
    else:
        console = Console(soft_wrap=True)
        for violation in found.violations:
            console.print(f"{violation.rule}: {violation.message}", markup=False)
        state = "valid" if found.is_valid() else counted(len(found.violations), "violation")
        slots = "slots unknown" if found.slots is None else counted(found.slots, "slot")
        console.print(
            f"{plan_file}: {state}; {counted(len(found.plan.microbatches), 'microbatch')}, {slots}, at least "
            f"{found.lower_bound} by a bound computed anew",
            markup=False,
        )
    if not found.is_valid():
        raise typer.Exit(1)


def bench_planner(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for NAME-*.json, .csv and .png.")] = Path(
        "analysis/results"
    ),
    lengths: Annotated[
        Path | None,
        typer.Option(help="Folder of NAME.csv with real lengths.", show_default="drawn from the shipped tables"),
    ] = None,
    adapters: Annotated[list[int] | None, typer.Option(help="Numbers of adapters.", show_default="4")] = None,
    name: Annotated[str, typer.Option(help="What the files' names begin with.")] = "planner",
    quick: Annotated[bool, typer.Option(help="A twelfth of the workloads.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object with the summary.")] = False,
) -> None:
    """Plan a grid of workloads by every strategy and compare slots with the lower bound."""
    import json as json_module

    from rich.console import Console

    from .bench import run_bench, write_results
    from .bench_cases import bench_lengths
    from .bench_exact import exact_study, study_as_json
    from .bench_table import study_table, summary_table
    from .plan_command import progress_on_stderr

    with progress_on_stderr("{what}: {share:.0%} of the workloads") as progress:
        result = run_bench(lengths=lengths, adapters=tuple(adapters or (4,)), quick=quick, progress=progress)
        progress("small workloads, solved exactly", 1.0)
        study = exact_study(lengths=bench_lengths(lengths), num_workloads=10 if quick else 100)
    paths = write_results(result, output, study=study_as_json(study), stem=name)
    if json:
        told = {"summary": result.summary(), "small": study_as_json(study), "files": [str(path) for path in paths]}
        print(json_module.dumps(told))
        return
    console = Console(soft_wrap=True)
    console.print(summary_table(result))
    console.print(study_table(study))
    console.print("Wrote " + ", ".join(str(path) for path in paths), markup=False)
