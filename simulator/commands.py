"""The command line's share of the simulator, first part: `simulate`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..planner.options import JsonMsBytes

if TYPE_CHECKING:
    from rich.console import Console

    from ..analysis.metrics import Summary
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
