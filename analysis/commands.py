"""The command line's share of analysis: `compare` and `report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..planner.options import Json, JsonMs

if TYPE_CHECKING:
    from .compare import Comparison
    from .run import Run


def compare(
    simulated: Annotated[Path, typer.Argument(help="Folder of a run, or its simulated timeline.", show_default=False)],
    measured: Annotated[
        Path | None, typer.Argument(help="Measured timeline, if the first is a file.", show_default=False)
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Plan of both; adds tokens and adapters.", show_default=False)
    ] = None,
    json: JsonMs = False,
) -> None:
    """Compare a simulated with a measured timeline: makespan, bubbles, each kind of action, and the order.

    Given a run's folder, it also leaves there comparison.json, every picture the run allows and a trace of both
    timelines for Perfetto.
    """
    import json as json_module

    from rich.console import Console

    from ..planner.plan_file import load_plan
    from ..traces.timeline import Timeline
    from .compare import compare as compare_timelines
    from .explain import explain_waits
    from .run import Run, load_run
    from .tables import comparison_table

    run: Run | None = None
    if measured is None:
        run = load_run(simulated)
        foretold, happened = run.both()
    else:
        foretold, happened = Timeline.load(simulated), Timeline.load(measured)
    known = load_plan(plan) if plan is not None else run.plan if run is not None else None
    last = None if run is None else run.last_steps()
    comparison = compare_timelines(
        explain_waits(foretold), measured=explain_waits(happened), plan=known, last_steps=last
    )
    if run is not None:
        _write_comparison(simulated, run, comparison)
    if json:
        print(json_module.dumps(comparison.to_json()))
    else:
        Console().print(comparison_table(comparison))


def _write_comparison(folder: Path, run: "Run", comparison: "Comparison") -> None:
    import json as json_module

    from rich.console import Console
    from rich.progress import track

    from ..traces.chrome_trace import write_chrome_trace
    from ..traces.files import write_atomically
    from ..traces.run_folder import COMPARISON, TRACE
    from .contents import contents_of
    from .explain import explain_waits
    from .pictures import run_pictures

    write_atomically(folder / COMPARISON, json_module.dumps(comparison.to_json(), indent=1) + "\n")
    timelines = [explain_waits(timeline) for timeline in run.timelines()]
    write_chrome_trace(timelines, folder / TRACE, contents=contents_of(run.plan) if run.plan is not None else None)
    pictures = tuple(run_pictures(run, (comparison.simulated, comparison.measured)))
    for picture in track(pictures, description="drawing", console=Console(stderr=True), transient=True):
        picture.draw(folder / picture.name)


def report(
    folder: Annotated[Path, typer.Argument(help="Folder that simulate, train or demo wrote.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write instead of report.html in the folder.")
    ] = None,
    json: Json = False,
) -> None:
    """Write one self-contained HTML page about a run: numbers, plots, and a timeline to zoom into."""
    import json as json_module

    from rich.console import Console
    from rich.progress import Progress

    from ..traces.ranking import load_rankings, rankings_document
    from ..traces.run_folder import RANKING
    from .report import write_report

    watched = Console(stderr=True)
    with Progress(console=watched, transient=True, disable=not watched.is_interactive) as bar:
        task = bar.add_task("report", total=1.0)
        path = write_report(
            folder,
            output=output,
            progress=lambda doing, share: bar.update(task, description=doing, completed=share),
        )
    if json:
        rankings = rankings_document(load_rankings(folder / RANKING))
        print(json_module.dumps({"report": str(path), "bytes": path.stat().st_size, "rankings": rankings}))
    else:
        Console().print(f"wrote {path}; open it in a browser", soft_wrap=True)


def bench_sharing(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the figures (JSON and CSV).")] = Path(
        "analysis/results"
    ),
    pictures: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("docs/pictures"),
    lengths: Annotated[
        Path | None,
        typer.Option(help="Folder of NAME.csv with num_tokens, to use instead of draws from the shipped tables."),
    ] = None,
    json: Json = False,
) -> None:
    """Replay adapters together and apart, and all systems side by side: where sharing one pipeline pays."""
    import json as json_module
    import shlex
    import sys
    from dataclasses import asdict

    import pandas as pd
    from rich.console import Console
    from rich.progress import Progress

    from ..simulator.sharing import PROFILE, sharing_points, system_points
    from ..simulator.simulate import Hardware
    from ..traces.files import write_atomically
    from ..traces.profiles import load_profile
    from ..traces.workloads import DATASETS, read_lengths
    from .sharing_plots import plot_sharing

    profile = load_profile(PROFILE)
    real = None if lengths is None else {name: read_lengths(lengths / f"{name}.csv") for name in DATASETS}
    records: dict[str, list[dict[str, object]]] = {}
    watched = Console(stderr=True)
    with Progress(console=watched, transient=True, disable=not watched.is_interactive) as bars:
        for name, points_of in (("systems", system_points), ("curves", sharing_points)):
            task = bars.add_task(name, total=1.0)
            points = points_of(
                hardware=Hardware(profile=profile),
                lengths=real,
                progress=lambda doing, share, task=task: bars.update(task, description=doing, completed=share),  # type: ignore[misc]
            )
            records[name] = [asdict(point) for point in points]
    content = {
        "command": shlex.join(["loraplex", *sys.argv[1:]]),
        "profile": {"name": profile.name, "origin": profile.origin},
        "lengths": "drawn from the shipped tables" if real is None else "the data sets themselves, in order",
        "results": records,
    }
    for name, rows in records.items():
        write_atomically(output / f"sharing-{name}.csv", pd.DataFrame(rows).to_csv(index=False))
    write_atomically(output / "sharing.json", json_module.dumps(content, indent=1) + "\n")
    plot_sharing(systems=pd.DataFrame(records["systems"]), curves=pd.DataFrame(records["curves"]), folder=pictures)
    if json:
        print(json_module.dumps(content))
    else:
        Console().print(f"wrote {output / 'sharing.json'}, its tables, and pictures in {pictures}", soft_wrap=True)
