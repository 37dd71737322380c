"""The command line's share of the simulator, first part: `simulate` and `estimate`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..planner.options import JobFile, JsonMsBytes, PlanOfJobs, Recompute

if TYPE_CHECKING:
    from rich.console import Console

    from ..analysis.metrics import Summary
    from ..planner.gpus import Gpus
    from .ask import Answer


def simulate(
    plan: Annotated[
        Path | None, typer.Argument(help="A plan.json; none with --uniform and --microbatches.", show_default=False)
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="Cost profile: a file that `loraplex profile` wrote, or one in the box (a wrong name lists them).",
            show_default=False,
        ),
    ] = None,
    uniform: Annotated[
        str | None,
        typer.Option(
            metavar="F,B[,W]",
            help="Textbook costs instead of a profile: ms per microbatch and stage of forward, whole backward, and the "
            "part of the backward that makes weight gradients.",
            show_default=False,
        ),
    ] = None,
    cluster: Annotated[
        Path | None,
        typer.Option(
            help="Cluster file (YAML): nodes, links and their queues, memory, jitter, slow GPUs, pauses, a restart.",
            show_default=False,
        ),
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="1f1b, 1f1b-flush, gpipe, zb-h1, interleaved-2, ...", show_default="the plan's")
    ] = None,
    program: Annotated[
        Path | None,
        typer.Option(
            help="Replay this Program instead of a schedule's: a text such as program.txt of an output folder, one "
            "line a stage, 0F0 0F1 0B0 ...",
            show_default=False,
        ),
    ] = None,
    kernels: Annotated[
        str | None, typer.Option(help="fused, eager or frozen linears.", show_default="the profile's fastest")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Layers of each stage, such as 8,8,8,8.", show_default="even")
    ] = None,
    recompute: Annotated[
        str, typer.Option(help="What the backward computes again: none, selective (norms, SwiGLU) or full (layers).")
    ] = "none",
    method: Annotated[
        str,
        typer.Option(
            help="simpy (the reference), recurrence (faster; no contention, no pauses) or auto (whatever can tell)."
        ),
    ] = "auto",
    compare_systems: Annotated[
        bool, typer.Option("--compare-systems", help="Also replay rival systems on the plan's jobs.")
    ] = False,
    stages: Annotated[int, typer.Option(help="Stages of a textbook question.", min=1)] = 4,
    microbatches: Annotated[
        int | None, typer.Option(help="Microbatches of a textbook question.", min=1, show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for timeline, trace and pictures.", show_default=False),
    ] = None,
    json: JsonMsBytes = False,
) -> None:
    """Replay a plan on hardware described by numbers: makespan, bubbles by cause, tokens/s, memory, a timeline."""
    import json as json_module

    from rich.console import Console

    from .ask import Question, answer
    from .progress import progress_on_stderr

    question = Question(
        plan=plan,
        profile=profile,
        uniform=uniform,
        cluster=cluster,
        schedule=schedule,
        program=program,
        kernels=kernels,
        layers=layers,
        recompute=recompute,
        method=method,
        compare_systems=compare_systems,
        num_stages=stages,
        num_microbatches=microbatches,
    )
    with progress_on_stderr() as progress:
        found = answer(question, progress=progress)
        content = _as_json(found)
        if output is not None:
            _write(found, output, content, progress=progress)
    if json:
        print(json_module.dumps(content, allow_nan=False))
    else:
        _show(found, Console(), systems=content.get("systems", ()), folder=output)


def _summary(found: "Answer") -> "Summary":
    from ..analysis.metrics import summarize

    return summarize(found.simulation.timeline, plan=found.plan, alone_ms=found.alone_ms)


def _as_json(found: "Answer") -> "dict[str, Any]":
    from dataclasses import asdict

    from ..analysis.metrics import summarize

    profile, misfit = found.hardware.profile, found.simulation.misfit
    systems = [
        {
            "system": system.name,
            "about": system.about,
            "schedule": system.schedule,
            "tokens_per_s": system.tokens_per_s(),
            "num_microbatches": system.num_microbatches,
            "speedup": system.tokens_per_s() / found.systems[0].tokens_per_s(),
        }
        | {
            name: value
            for name, value in summarize(system.timeline).to_json().items()
            if name in ("makespan_ms", "bubble_ratio", "bubble_ms_by_cause", "peak_memory_bytes")
        }
        for system in found.systems
    ]
    return (
        _summary(found).to_json()
        | {
            "schedule": found.program.schedule,
            "method": found.simulation.method,
            "num_actions": found.program.num_actions(),
            "profile": {"name": profile.name, "origin": profile.origin, "source": profile.source},
            "cluster": found.hardware.cluster.name,
            "fits_in_memory": misfit is None,
            "first_misfit": None if misfit is None else asdict(misfit),
        }
        | ({"systems": systems} if systems else {})
    )


def _show(found: "Answer", console: "Console", *, systems: "Sequence[dict[str, Any]]", folder: Path | None) -> None:
    from ..analysis.tables import summary_table, systems_table
    from ..analysis.units import bytes_text, ms_text

    profile, misfit = found.hardware.profile, found.simulation.misfit
    console.print(summary_table(_summary(found)))
    console.print(
        f"schedule {found.program.schedule}, {found.program.num_actions():,} actions, by {found.simulation.method}; "
        f"costs '{profile.name}' ({profile.origin}): {profile.source}",
        markup=False,
        highlight=False,
    )
    if misfit is not None:
        needed, held = bytes_text(misfit.needed_bytes), bytes_text(misfit.capacity_bytes)
        console.print(
            f"[bold]does not fit[/]: stage {misfit.stage} of replica {misfit.replica} needs {needed} at "
            f"{ms_text(misfit.ms)}, its device has {held}"
        )
    if systems:
        console.print(systems_table(systems))
    if folder is not None:
        console.print(f"wrote {folder}; look at it with: loraplex report {folder}", markup=False)


def _write(
    found: "Answer", folder: Path, content: "dict[str, Any]", *, progress: "Callable[[str, float], None]"
) -> None:
    import json as json_module
    import shlex
    import sys

    from ..analysis.gantt import plot_gantt
    from ..analysis.metrics import summarize
    from ..analysis.plots import plot_bubbles, plot_memory, plot_waste
    from ..planner.plan_file import save_plan
    from ..traces.chrome_trace import write_chrome_trace
    from ..traces.files import write_atomically
    from ..traces.run_folder import COMMAND, PLAN, SIMULATED, SUMMARY, TRACE

    timeline = found.simulation.timeline
    progress("writing timeline and trace", 0.1)
    folder.mkdir(parents=True, exist_ok=True)
    save_plan(found.plan, folder / PLAN)
    timeline.save(folder / SIMULATED)
    write_chrome_trace(timeline, folder / TRACE)
    write_atomically(folder / "program.txt", found.program.to_text())
    write_atomically(folder / SUMMARY, json_module.dumps(content, indent=1, allow_nan=False) + "\n")
    write_atomically(folder / COMMAND, shlex.join(["loraplex", *sys.argv[1:]]) + "\n")
    progress("drawing", 0.5)
    plot_gantt(timeline, found.plan, folder / "gantt")
    capacity = found.hardware.cluster.memory_bytes or found.hardware.profile.memory.capacity_bytes
    if len(timeline.counters):
        plot_memory(timeline, folder / "memory", capacity_bytes=capacity if capacity != float("inf") else None)
    else:
        # Costs without memory: an earlier answer's picture would pass for this one's.
        for ending in ("png", "svg"):
            (folder / f"memory.{ending}").unlink(missing_ok=True)
    plot_waste(found.plan, folder / "waste")
    if found.systems:
        summaries = {system.name: summarize(system.timeline) for system in found.systems}
        plot_bubbles({"": summaries}, folder / "bubbles")
    progress("done", 1.0)


def estimate(
    job_file: JobFile,
    plan: PlanOfJobs = None,
    profile: Annotated[
        str | None,
        typer.Option(help="Cost profile: a name in the box or a file.", show_default="memory by shapes, no times"),
    ] = None,
    device_memory: Annotated[
        float | None,
        typer.Option(metavar="GIB", help="Memory of each GPU.", show_default="this machine's, else the profile's"),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            help="GPUs for all stages, which may share them.", min=1, show_default="this machine's, or one each"
        ),
    ] = None,
    stages: Annotated[int | None, typer.Option(help="Pipeline stages.", min=1, show_default="the job file's")] = None,
    replicas: Annotated[
        int | None, typer.Option(help="Pipelines side by side.", min=1, show_default="the job file's")
    ] = None,
    recompute: Recompute = None,
    json: JsonMsBytes = False,
) -> None:
    """Tell what training a job file takes, before anything runs: memory by stage, time, and what to change."""
    import json as json_module

    from rich.console import Console

    from ..analysis.estimate_table import estimate_table, estimate_values
    from ..analysis.metrics import summarize
    from ..planner.inputs.read_jobfile import read_jobfile
    from ..traces.memory_costs import recompute_choice
    from .estimate import EstimateRequest
    from .estimate import estimate as make_estimate
    from .progress import progress_on_stderr

    device_bytes = bytes_of_gib(device_memory)
    # Before torch, which counts the GPUs and takes seconds to import: a mistake in the file is told at once.
    read_jobfile(job_file)
    request = EstimateRequest(
        job_file=job_file,
        plan_file=plan,
        profile=profile,
        machine=this_machine() if device_memory is None and gpus is None else None,
        device_bytes=device_bytes,
        num_gpus=gpus,
        recompute=None if recompute is None else recompute_choice(recompute),
        num_stages=stages,
        num_replicas=replicas,
    )
    with progress_on_stderr() as progress:
        found = make_estimate(request, progress=progress)
    summary = None if found.simulation is None else summarize(found.simulation.timeline, plan=found.plan)
    if json:
        print(json_module.dumps(estimate_values(found.plan, found.decision, summary), allow_nan=False))
        return
    console = Console()
    console.print(estimate_table(found.plan, found.decision, summary))


def bytes_of_gib(device_memory: float | None) -> float | None:
    """Of --device-memory. Raises SimulationError where it is not above 0."""
    from .errors import SimulationError

    if device_memory is not None and not device_memory > 0:
        raise SimulationError(f"--device-memory {device_memory} must be above 0 GiB; raise it")
    return None if device_memory is None else device_memory * 2**30


def this_machine() -> "Gpus | None":
    """Its GPUs with what is free of them; None without any, or without torch."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        return None
    from ..engine.device_memory import free_gpus

    return free_gpus()
