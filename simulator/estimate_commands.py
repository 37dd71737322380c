"""The command line's share of the simulator, fourth part: `estimate`."""

from typing import TYPE_CHECKING, Annotated

import typer

from ..planner.options import DeviceMemory, JobFile, JsonMsBytes, PlanOfJobs, Recompute

if TYPE_CHECKING:
    from ..planner.gpus import Gpus


def estimate(
    job_file: JobFile,
    plan: PlanOfJobs = None,
    profile: Annotated[
        str | None,
        typer.Option(help="Cost profile: a name in the box or a file.", show_default="memory by shapes, no times"),
    ] = None,
    device_memory: DeviceMemory = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            help="GPUs for all stages, which may share them.", min=1, show_default="this machine's, or one each"
        ),
    ] = None,
    stages: Annotated[int | None, typer.Option(help="Pipeline stages.", min=1, show_default="the job file's")] = None,
    replicas: Annotated[
        int | None, typer.Option(help="Pipelines side by side.", min=1, show_default="the job file's")
    ] = None,
    recompute: Recompute = None,
    json: JsonMsBytes = False,
) -> None:
    """Tell what training a job file takes, before anything runs: memory by stage, time, and what to change."""
    import json as json_module

    from rich.console import Console

    from ..analysis.estimate_table import estimate_table, estimate_values
    from ..analysis.metrics import summarize
    from ..traces.memory_costs import recompute_choice
    from .asked_gpus import AskedGpus
    from .estimate import EstimateRequest
    from .estimate import estimate as make_estimate
    from .progress import progress_on_stderr

    request = EstimateRequest(
        job_file=job_file,
        plan_file=plan,
        profile=profile,
        gpus=AskedGpus(num_gpus=gpus, device_gib=device_memory, machine=this_machine),
        recompute=None if recompute is None else recompute_choice(recompute),
        num_stages=stages,
        num_replicas=replicas,
    )
    with progress_on_stderr() as progress:
        found = make_estimate(request, progress=progress)
    summary = None if found.simulation is None else summarize(found.simulation.timeline, plan=found.plan)
    if json:
        print(json_module.dumps(estimate_values(found.plan, found.decision, summary), allow_nan=False))
        return
    Console().print(estimate_table(found.plan, found.decision, summary))


def this_machine() -> "Gpus | None":
    """Its GPUs with what is free of them; None without any, or without torch."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        return None
    from ..engine.device_memory import free_gpus

    return free_gpus()
