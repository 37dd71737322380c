"""The command line: `loraplex COMMAND`. Each room's commands.py holds its commands; this file only puts them together.

Everything heavy is imported inside the commands, so that `loraplex --help` answers at once.
"""

import sys

import typer

from .traces.errors import InputError

app = typer.Typer(
    name="loraplex",
    help="Train many LoRA adapters on one frozen base model, exactly, and know beforehand how that will go.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    rich_markup_mode="markdown",
)


def main() -> None:
    """Run a command. Bad input ends with exit code 2 and one message, never a traceback."""
    try:
        app()
    except (InputError, OSError) as error:
        print(f"loraplex: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
