"""The one plain style of tables for a terminal: a line under the head, nothing else, narrow enough for 80 columns."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table


def plain_table(*, title: str | None = None) -> Table:
    """An empty table; its columns are the caller's."""
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def adapters_table(columns: Sequence[str], *, title: str | None = None) -> Table:
    """A table of one row an adapter, to be filled: of 80 columns only the names give way, and are folded, never cut."""
    table = plain_table(title=title)
    table.add_column("adapter", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
