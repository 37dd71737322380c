"""The command line: `loraplex COMMAND`. Each room's commands.py holds its commands; this file only puts them together.

Everything heavy is imported inside the commands, so that `loraplex --help` answers at once.
"""

import sys

import typer

from .analysis import commands as analysis_commands
from .engine import commands as engine_commands
from .planner import commands as planner_commands
from .simulator import commands as simulator_commands
from .traces.errors import InputError

app = typer.Typer(
    name="loraplex",
    help="Train many LoRA adapters on one frozen base model, exactly, and know beforehand how that will go.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
data = typer.Typer(help="Look at the data of a job file.", no_args_is_help=True)
bench = typer.Typer(help="Measure a room of this project against its goals and peers.", no_args_is_help=True)

app.command("init")(planner_commands.init)
app.add_typer(data, name="data")
data.command("show")(planner_commands.data_show)
app.command("simulate")(simulator_commands.simulate)
app.command("train")(engine_commands.train)
app.command("compare")(analysis_commands.compare)
app.add_typer(bench, name="bench")


def main() -> None:
    """Run a command. Bad input ends with exit code 2 and one message, never a traceback."""
    try:
        app()
    except (InputError, OSError) as error:
        print(f"loraplex: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
