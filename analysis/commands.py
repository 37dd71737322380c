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
