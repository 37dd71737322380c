"""The command line's share of the simulator, third part: `advise`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..planner.options import DeviceMemory, JobFile, JsonMsBytes
from ..traces.counted import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..analysis.advise_table import AdviceRow
    from .advise import Advice, Candidate


def advise(
    job_file: JobFile,
    profile: Annotated[
        str, typer.Option(help="Cost profile: a name in the box or a file that `loraplex profile` wrote.")
    ],
    gpus: Annotated[
        int | None,
        typer.Option(help="GPUs to lay it on.", min=1, show_default="this machine's, else the job file's workers"),
    ] = None,
    device_memory: DeviceMemory = None,
    cluster: Annotated[
        Path | None, typer.Option(help="Cluster file (YAML): links between GPUs.", show_default="the profile's link")
    ] = None,
    batches: Annotated[
        int, typer.Option(help="Look at so many first global batches of each adapter; 0: at all.", min=0)
    ] = 32,
    top: Annotated[int, typer.Option(help="Layouts to show, best first.", min=1)] = 10,
    json: JsonMsBytes = False,
) -> None:
    """Find the fastest way to lay a job file on so many GPUs: stages, replicas, microbatches, recomputation."""
    import json as json_module

    from rich.console import Console

    from ..analysis.advise_table import advice_table, advice_values
    from .advise import AdviseRequest
    from .advise import advise as make_advice
    from .asked_gpus import AskedGpus
    from .estimate_commands import this_machine
    from .progress import progress_on_stderr

    request = AdviseRequest(
        job_file=job_file,
        profile=profile,
        gpus=AskedGpus(num_gpus=gpus, device_gib=device_memory, machine=this_machine),
        cluster=cluster,
        num_batches=batches or None,
    )
    with progress_on_stderr() as progress:
        advice = make_advice(request, progress=progress)
    rows = [_row(candidate, advice) for candidate in advice.candidates]
    if json:
        impossible = [asdict(layout) | {"why": why} for layout, why in advice.impossible]
        content = {
            "num_gpus": len(advice.gpus.free_bytes),
            "profile": advice.profile.name,
            "num_batches": advice.num_batches,
        }
        print(json_module.dumps(content | {"layouts": advice_values(rows), "impossible": impossible}, allow_nan=False))
    else:
        Console().print(advice_table(rows, title=_title(advice), notes=tuple(_notes(advice)), top=top))


def _row(candidate: "Candidate", advice: "Advice") -> "AdviceRow":
    from ..analysis.advise_table import AdviceRow
    from ..analysis.metrics import summarize

    decision = candidate.estimate.decision
    return AdviceRow(
        **asdict(candidate.layout),
        recompute=decision.need.recompute,
        is_job_files=candidate.layout == advice.asked,
        fits=decision.fits(),
        peak_bytes=decision.need.peak_bytes(),
        tokens_per_s=candidate.tokens_per_s(),
        bubble_ratio=summarize(candidate.timeline()).bubble_ratio,
    )


def _title(advice: "Advice") -> str:
    from ..analysis.units import bytes_text

    free = advice.gpus.free_bytes
    each = "" if min(free) == float("inf") else f" of {bytes_text(min(free))}"
    return f"{counted(len(free), 'GPU')}{each}, by {advice.profile.name}"


def _notes(advice: "Advice") -> "Iterator[str]":
    yield f"over the first {counted(advice.num_batches, 'global batch')} of each adapter (--batches)"
    if advice.free_transfers:
        yield (
            "messages between GPUs count as free: the profile knows no link; --cluster describes one, and "
            "loraplex profile --stages 2 measures one"
        )
    for layout, why in advice.impossible:
        yield f"no plan for {layout.text()}: {why}"
