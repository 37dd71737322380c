"""The command line's share of analysis: `compare` and `report`."""

from pathlib import Path
from typing import Annotated

import typer


def compare(
    simulated: Annotated[Path, typer.Argument(help="Folder of a run, or its simulated timeline.", show_default=False)],
    measured: Annotated[
        Path | None, typer.Argument(help="Measured timeline, if the first is a file.", show_default=False)
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Plan of both; adds tokens and adapters.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object (times in ms).")] = False,
) -> None:
    """Compare a simulated with a measured timeline: makespan, bubbles, each kind of action, and the order."""
    import json as json_module

    from rich.console import Console

    from ..planner.plan_file import load_plan
    from ..traces.run_folder import MEASURED, PLAN, SIMULATED
    from ..traces.timeline import Timeline
    from .compare import compare as compare_timelines
    from .tables import comparison_table

    if measured is None:
        folder = simulated
        simulated, measured = folder / SIMULATED, folder / MEASURED
        plan = plan or (folder / PLAN if (folder / PLAN).exists() else None)
    comparison = compare_timelines(
        Timeline.load(simulated),
        measured=Timeline.load(measured),
        plan=load_plan(plan) if plan else None,
    )
    if json:
        print(json_module.dumps(comparison.to_json()))
    else:
        Console().print(comparison_table(comparison))


def report(
    folder: Annotated[Path, typer.Argument(help="Folder that simulate, train or demo wrote.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write instead of report.html in the folder.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write one self-contained HTML page about a run: numbers, plots, and a timeline to zoom into."""
    import json as json_module

    from rich.console import Console
    from rich.progress import Progress

    from .report import write_report

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("report", total=1.0)
        path = write_report(
            folder,
            output=output,
            progress=lambda doing, share: bar.update(task, description=doing, completed=share),
        )
    if json:
        print(json_module.dumps({"report": str(path), "bytes": path.stat().st_size}))
    else:
        Console().print(f"wrote {path}; open it in a browser", soft_wrap=True)
