"""The command line's share of planning: `init`, `data show`, and what comes before and after a plan."""

from pathlib import Path
from typing import Annotated

import typer


def init(
    path: Annotated[Path, typer.Argument(help="File to write; never overwritten.")] = Path("jobs.yaml"),
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a commented jobs.yaml that works as it is: three adapters on built-in texts and the built-in tiny model."""
    import json as json_module

    from rich.console import Console

    from .job_template import write_job_template

    write_job_template(path)
    if json:
        print(json_module.dumps({"job_file": str(path)}))
    else:
        Console().print(f"Wrote {path}. Next: loraplex data show {path}, then loraplex plan {path}", markup=False, soft_wrap=True)


def data_show(
    job_file: Annotated[Path, typer.Argument(help="A jobs.yaml.", show_default=False)],
    adapter: Annotated[str | None, typer.Option(help="Only this adapter.", show_default="all")] = None,
    sample: Annotated[int, typer.Option(help="Which sample, counted from 0 in training order.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object (lengths in tokens).")] = False,
) -> None:
    """Print one sample of each adapter as the model will read it, with what is learned marked."""
    import json as json_module

    from rich.console import Console
    from rich.progress import Progress, TaskID

    from .load_jobs import load_jobs
    from .shown_sample import samples_as_json, samples_as_text, shown_samples

    with Progress(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(label: str, share: float) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=1.0)
            bars.update(tasks[label], completed=share)

        loaded = load_jobs(job_file, progress=advance)
        shown = shown_samples(loaded, index=sample, adapter=adapter)
    if json:
        print(json_module.dumps(samples_as_json(loaded, shown)))
    else:
        Console(soft_wrap=True).print(samples_as_text(loaded, shown))
