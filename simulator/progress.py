"""A progress bar beside the answer: on stderr, gone when all is done."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_on_stderr() -> Iterator[Callable[[str, float], None]]:
    """What is told (what runs, share done) is shown while it lasts."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    # Where nobody watches, a bar would leave an empty line.
    with Progress(console=console, transient=True, disable=not console.is_interactive) as bars:
        task = bars.add_task("", total=1.0)

        def tell(label: str, share: float) -> None:
            bars.update(task, description=label, completed=share)

        yield tell
