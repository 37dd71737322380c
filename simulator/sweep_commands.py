"""The command line's share of the simulator, second part: `sweep` and `bench simulator`."""

from pathlib import Path
from typing import Annotated

import typer

from ..planner.options import JsonMsBytes
from ..traces.counted import counted
from ..traces.errors import InputError


def sweep(
    sweep_file: Annotated[Path, typer.Argument(help="A sweep file (YAML).", show_default=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for results; points it holds are not run again.")
    ] = Path("sweep"),
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    backend: Annotated[
        str,
        typer.Option(
            help="loky: processes here; dask or ray, if installed: theirs (DASK_SCHEDULER_ADDRESS, RAY_ADDRESS)."
        ),
    ] = "loky",
    top: Annotated[
        int, typer.Option(min=1, help="Points to show, best first: those that fit, then by real tokens a second.")
    ] = 10,
    json: JsonMsBytes = False,
) -> None:
    """Replay every combination of a sweep file's lists and ranges: a table, a ranking, and pictures by field."""
    import json as json_module

    from rich.console import Console

    from ..analysis.sweep_plots import plot_sweep
    from ..analysis.tables import ranking_table
    from .progress import progress_on_stderr
    from .sweep import ranked, run_sweep
    from .sweep_file import load_sweep

    asked = load_sweep(sweep_file)
    with progress_on_stderr() as progress:
        table = run_sweep(asked, folder=output, workers=workers, backend=backend, progress=progress)
        axes = [axis.name() for axis in asked.axes]
        pictures = plot_sweep(table, axes, output)
    best = ranked(table, count=top)
    num_failed = int(table["error"].notna().sum())
    if num_failed == len(table):
        raise InputError(
            f"{sweep_file}: none of its {counted(num_failed, 'point')} could be run, for example: "
            f"{table['error'].iloc[0]}; "
            f"mend the file ({output}/sweep.csv has every reason)"
        )
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
    console.print(ranking_table(best, axes, num_points=len(table)))
    if num_failed:
        console.print(
            f"{counted(num_failed, 'point')} could not be run, for example: {table['error'].dropna().iloc[0]}",
            markup=False,
        )
    console.print(f"wrote {output}/sweep.csv and {counted(len(pictures), 'picture')}", markup=False)


def bench_simulator(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for simulator-speed.json, .csv and the picture.")
    ] = Path("analysis/results"),
    repeats: Annotated[int, typer.Option(min=1, help="Runs of which the fastest counts.")] = 3,
    small: Annotated[bool, typer.Option("--small", help="Only 4 stages x 1,000 microbatches.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object (times in s of CPU).")] = False,
) -> None:
    """Measure how many actions a second SimPy and the recurrence replay, and a sweep of 1,000 points."""
    import json as json_module
    import shlex
    import sys

    import pandas as pd
    from rich.console import Console

    from ..analysis.speed_plot import plot_speed, speed_table
    from ..traces.files import write_atomically
    from .bench import SIZES, bench, report
    from .progress import progress_on_stderr

    with progress_on_stderr() as progress:
        rows = bench(sizes=SIZES[:1] if small else SIZES, repeats=repeats, progress=progress)
    content = report(rows, command=shlex.join(["loraplex", *sys.argv[1:]]))
    table = pd.DataFrame(content["results"])
    write_atomically(output / "simulator-speed.json", json_module.dumps(content, indent=1) + "\n")
    write_atomically(output / "simulator-speed.csv", table.to_csv(index=False))
    plot_speed(table, output / "simulator-speed")
    if json:
        print(json_module.dumps(content))
    else:
        Console().print(speed_table(table))
