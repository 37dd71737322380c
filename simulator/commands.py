"""The command line's share of the simulator: `simulate` and `sweep`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import Console
    from rich.table import Table

    from ..analysis.metrics import Summary
    from .ask import Answer
    from .bench import BenchRow


def simulate(
    plan: Annotated[
        Path | None, typer.Argument(help="A plan.json; none with --uniform and --microbatches.", show_default=False)
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Cost profile: a name in the box or a file.", show_default=False)
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
        Path | None, typer.Option(help="Cluster file (YAML): links, slow GPUs, pauses.", show_default=False)
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="1f1b, 1f1b-flush, gpipe, zb-h1, interleaved-2, ...", show_default="the plan's")
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
    method: Annotated[str, typer.Option(help="simpy, recurrence (no contention, no pauses) or auto.")] = "auto",
    compare_systems: Annotated[
        bool, typer.Option("--compare-systems", help="Also replay rival systems on the plan's jobs.")
    ] = False,
    stages: Annotated[int, typer.Option(help="Stages of a textbook question.")] = 4,
    microbatches: Annotated[
        int | None, typer.Option(help="Microbatches of a textbook question.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for timeline, trace and pictures.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object (times in ms, memory in bytes).")] = False,
) -> None:
    """Replay a plan on hardware described by numbers: makespan, bubbles by cause, tokens/s, memory, a timeline."""
    import json as json_module

    from rich.console import Console

    from .ask import Question, answer

    question = Question(
        plan=plan,
        profile=profile,
        uniform=uniform,
        cluster=cluster,
        schedule=schedule,
        kernels=kernels,
        layers=layers,
        recompute=recompute,
        method=method,
        compare_systems=compare_systems,
        num_stages=stages,
        num_microbatches=microbatches,
    )
    with _progress() as progress:
        found = answer(question, progress=progress)
        content = _as_json(found)
        if output is not None:
            _write(found, output, content, progress=progress)
    if json:
        print(json_module.dumps(content, allow_nan=False))
    else:
        _show(found, Console(), folder=output)


@contextmanager
def _progress() -> "Iterator[Callable[[str, float], None]]":
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=1.0)

        def tell(label: str, share: float) -> None:
            bars.update(task, description=label, completed=share)

        yield tell


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


def _show(found: "Answer", console: "Console", *, folder: Path | None) -> None:
    from rich.table import Table

    from ..analysis.metrics import summarize
    from ..analysis.tables import summary_table
    from ..analysis.units import bytes_text, ms_text, percent, rate_text

    profile, misfit = found.hardware.profile, found.simulation.misfit
    console.print(summary_table(_summary(found)))
    console.print(f"schedule {found.program.schedule}, {found.program.num_actions():,} actions, ", end="", markup=False)
    console.print(
        f"by {found.simulation.method}; costs '{profile.name}' ({profile.origin}): {profile.source}", markup=False
    )
    if misfit is not None:
        needed, held = bytes_text(misfit.needed_bytes), bytes_text(misfit.capacity_bytes)
        console.print(
            f"[bold]does not fit[/]: stage {misfit.stage} of replica {misfit.replica} needs {needed} at "
            f"{ms_text(misfit.ms)}, its device has {held}"
        )
    if found.systems:
        table = Table(title="systems on this workload, same kernels and devices for all", title_justify="left")
        for name in ("system", "schedule", "makespan", "tokens/s", "speedup", "bubble"):
            table.add_column(name, justify="left" if name in ("system", "schedule") else "right", no_wrap=True)
        for system in found.systems:
            table.add_row(
                system.name,
                system.schedule,
                ms_text(system.makespan_ms()),
                rate_text(system.tokens_per_s()),
                f"{system.tokens_per_s() / found.systems[0].tokens_per_s():.2f}x",
                percent(summarize(system.timeline).bubble_ratio),
            )
        console.print(table)
        for system in found.systems:
            console.print(f"{system.name}: {system.about}", markup=False)
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
    plot_memory(timeline, folder / "memory", capacity_bytes=capacity if capacity != float("inf") else None)
    plot_waste(found.plan, folder / "waste")
    if found.systems:
        summaries = {system.name: summarize(system.timeline) for system in found.systems}
        plot_bubbles({"": summaries}, folder / "bubbles")
    progress("done", 1.0)


def bench_simulator(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for simulator-speed.json, .csv and the picture.")
    ] = Path("analysis/results"),
    repeats: Annotated[int, typer.Option(help="Runs of which the fastest counts.")] = 3,
    small: Annotated[bool, typer.Option("--small", help="Only 4 stages x 1,000 microbatches.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object (times in s of CPU).")] = False,
) -> None:
    """Measure how many actions a second SimPy and the recurrence replay, and a sweep of 1,000 points."""
    import json as json_module
    import shlex
    import sys

    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from ..traces.files import write_atomically
    from .bench import SIZES, bench, report

    with _progress() as progress:
        rows = bench(sizes=SIZES[:1] if small else SIZES, repeats=repeats, progress=progress)
    content = report(rows, command=shlex.join(["loraplex", *sys.argv[1:]]))
    table = pd.DataFrame(content["results"])
    write_atomically(output / "simulator-speed.json", json_module.dumps(content, indent=1) + "\n")
    write_atomically(output / "simulator-speed.csv", table.to_csv(index=False))
    _plot_speed(rows, output / "simulator-speed")
    if json:
        print(json_module.dumps(content))
        return
    shown = Table(title="replay speed", title_justify="left")
    for name in ("stages", "microbatches", "method", "seconds", "actions/s", "peak memory"):
        shown.add_column(name, justify="left" if name == "method" else "right")
    for row in rows:
        peak = "-" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 2**20:,.1f} MiB"
        cells = (f"{row.num_stages}", f"{row.num_microbatches:,}", row.method, f"{row.seconds:.5f}")
        shown.add_row(*cells, f"{row.actions_per_s:,.0f}", peak)
    Console().print(shown)


def _plot_speed(rows: "Sequence[BenchRow]", path: Path) -> None:
    from ..analysis.style import adapter_colour, picture

    methods = [
        method for method in dict.fromkeys(row.method for row in rows) if not method.startswith(("build", "sweep"))
    ]
    with picture(path, width=8.0, height=4.5) as figure:
        axes = figure.subplots()
        for number, method in enumerate(methods):
            own = sorted((row.num_actions, row.actions_per_s) for row in rows if row.method == method)
            sizes, speeds = zip(*own, strict=True)
            axes.plot(sizes, speeds, color=adapter_colour(number), marker="os^Dv"[number % 5], label=method)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("actions in the Program")
        axes.set_ylabel("actions per second of CPU")
        axes.set_title("Replay speed by size of the Program")
        figure.legend(loc="outside right upper")


def sweep(
    sweep_file: Annotated[Path, typer.Argument(help="A sweep file (YAML).", show_default=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for results; points it holds are not run again.")
    ] = Path("sweep"),
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    backend: Annotated[str, typer.Option(help="joblib backend: loky, or dask or ray if set up.")] = "loky",
    top: Annotated[int, typer.Option(help="Points to show.")] = 10,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object (times in ms, memory in bytes).")] = False,
) -> None:
    """Replay every combination of a sweep file's lists and ranges: a table, a ranking, and pictures by field."""
    import json as json_module

    from rich.console import Console

    from .sweep import ranked, run_sweep
    from .sweep_file import load_sweep

    asked = load_sweep(sweep_file)
    with _progress() as progress:
        table = run_sweep(asked, folder=output, workers=workers, backend=backend, progress=progress)
        axes = [axis.name() for axis in asked.axes]
        pictures = _plot_sweep(table, axes, output)
    best = ranked(table, count=top)
    num_failed = int(table["error"].notna().sum())
    if json:
        content = {
            "num_points": len(table),
            "num_failed": num_failed,
            "axes": axes,
            "best": json_module.loads(best.to_json(orient="records")),
            "errors": sorted(set(table["error"].dropna()))[:top],
            "folder": str(output),
            "pictures": pictures,
        }
        print(json_module.dumps(content))
        return
    console = Console()
    console.print(_ranking(best, axes, num_points=len(table)))
    if num_failed:
        console.print(
            f"{num_failed} points could not be run, for example: {table['error'].dropna().iloc[0]}", markup=False
        )
    console.print(f"wrote {output}/sweep.csv and {len(pictures)} pictures", markup=False)


def _ranking(best: "DataFrame", axes: "Sequence[str]", *, num_points: int) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from ..analysis.units import bytes_text, ms_text, percent, rate_text

    title = f"best {len(best)} of {num_points:,} points"
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    short = [name.rsplit(".", 1)[-1] for name in axes]
    for name, last in zip(axes, short, strict=True):
        widest = max((len(str(value)) for value in best[name]), default=1)
        shown.add_column(last if short.count(last) == 1 else name, justify="right", min_width=widest)
    for name in ("makespan", "tokens/s", "bubble", "memory", "fits"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in best.to_dict(orient="records"):
        held = None if row["peak_memory_bytes"] is None else float(row["peak_memory_bytes"])
        shown.add_row(
            *(str(row[name]) for name in axes),
            ms_text(float(row["makespan_ms"])),
            rate_text(float(row["tokens_per_s"])),
            percent(float(row["bubble_ratio"])),
            bytes_text(held),
            "yes" if row["fits_in_memory"] else "no",
        )
    return shown


def _plot_sweep(table: "DataFrame", axes: "Sequence[str]", folder: Path) -> list[str]:
    from pandas.api.types import is_numeric_dtype

    from ..analysis.plots import plot_curves
    from ..analysis.style import picture

    good = table[table["error"].isna()]
    varied = [name for name in axes if good[name].nunique() > 1]
    written = []
    for name in varied:
        stem = f"tokens-per-s-by-{name.replace('.', '-')}"
        if is_numeric_dtype(good[name]) and good[name].dtype != bool:
            others = [other for other in varied if other != name and good[other].nunique() <= 6]
            parts = dict(list(good.groupby(others[0]))) if others else {"median of all points": good}
            curves = {
                str(label): own.groupby(name)["tokens_per_s"].median().rename_axis("x").rename("y").reset_index()
                for label, own in parts.items()
            }
            title = f"Median throughput by {name}" + (f", for each {others[0]}" if others else "")
            plot_curves(curves, folder / stem, x_label=name, y_label="throughput [real tokens/s]", title=title)
        else:
            medians = good.groupby(name)["tokens_per_s"].median().sort_values()
            with picture(folder / stem, width=7.5, height=1.6 + 0.4 * len(medians)) as figure:
                panel = figure.subplots()
                panel.barh([str(label) for label in medians.index], medians.to_numpy())
                panel.set_xlabel("median throughput [real tokens/s]")
                panel.set_title(f"Median throughput by {name}")
        written.append(f"{stem}.svg")
    return written
