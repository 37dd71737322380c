"""The plan of a job file: made as the file asks, or one that is there and checked to belong to it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..traces.costs import CostProfile
from ..traces.counted import counted
from .assumed_costs import assumed_costs
from .errors import JobError, PlanError
from .inputs.loaded_jobs import LoadedJobs
from .make_plan import make_plan
from .plan import Plan


def plan_jobs(
    loaded: LoadedJobs,
    *,
    profile: CostProfile | None = None,
    time_limit_s: float = 30.0,
    progress: Callable[[str, float], None] | None = None,
) -> Plan:
    """A plan for what a job file holds, with the stages, replicas, capacity and schedule it asks for.

    Without a profile pipelines are planned by `assumed_costs`. Raises PlanError where there is none.
    """
    wanted = loaded.settings
    return make_plan(
        loaded.jobs,
        num_stages=wanted.num_stages,
        num_replicas=wanted.num_replicas,
        microbatch_tokens=wanted.microbatch_tokens,
        schedule=wanted.schedule,
        time_limit_s=time_limit_s,
        profile=profile or assumed_costs(num_workers=wanted.num_stages * wanted.num_replicas),
        data_fingerprint=loaded.fingerprint,
        progress=progress,
    )


def spread_otherwise(
    loaded: LoadedJobs, *, num_stages: int | None = None, num_replicas: int | None = None
) -> LoadedJobs:
    """What a job file holds, on as many stages and replicas as the command line asks for; None leaves the file's own.

    Raises JobError for more stages than the model has layers.
    """
    settings, model = loaded.settings, loaded.settings.base_model
    if (num_stages or 0) > model.num_layers:
        raise JobError(
            f"--stages {num_stages} exceeds the {counted(model.num_layers, 'layer')} of {model.name}, and each "
            "stage needs one; lower it"
        )
    # 0 is a mistake to be told, not an absence.
    asked = replace(
        settings,
        num_stages=settings.num_stages if num_stages is None else num_stages,
        num_replicas=settings.num_replicas if num_replicas is None else num_replicas,
    )
    return replace(loaded, settings=asked)


def check_plan_belongs(plan: Plan, loaded: LoadedJobs, *, path: Path, resumed: bool = False) -> None:
    """Raise PlanError, naming what differs, for a plan that was made for other data or another job.

    The plan of a run to be `resumed` cannot be made anew: the job must be what it was.
    """
    mend = f"make it anew with loraplex plan {loaded.settings.job_file}"
    if resumed:
        mend = f"let {loaded.settings.job_file} and its texts be what they were, or train without --resume"
    if loaded.settings.base_model.random_weights and not plan.data_fingerprint:
        mend = f"write random_weights: true into {loaded.settings.job_file} and make it anew, or leave out --plan"
    _check_num_steps(plan, loaded, path=path, resumed=resumed, mend=mend)
    if plan.data_fingerprint != loaded.fingerprint:
        raise PlanError(f"{path} was made for other data (fingerprint {plan.data_fingerprint[:12] or 'none'}); {mend}")
    names, own_names = [job.name for job in plan.jobs], [job.name for job in loaded.jobs]
    if names != own_names:
        raise PlanError(f"{path} trains the adapters {names}, the job file {own_names}; {mend}")
    for planned, job in zip(plan.jobs, loaded.jobs, strict=True):
        for field in ("global_batches", "lora", "optimizer", "seed"):
            if getattr(planned, field) != getattr(job, field):
                raise PlanError(f"{path} holds other {field} of adapter '{job.name}' than the job file; {mend}")
    if plan.num_stages > loaded.settings.base_model.num_layers:
        raise PlanError(
            f"{path} has {counted(plan.num_stages, 'stage')}, but the base model only "
            f"{counted(loaded.settings.base_model.num_layers, 'layer')}; {mend}"
        )


def _check_num_steps(plan: Plan, loaded: LoadedJobs, *, path: Path, resumed: bool, mend: str) -> None:
    # First: where max_steps or num_epochs was changed, the data are others too.
    if resumed:
        mend = (
            "a run goes on as it was planned, since learning rates follow from the number of steps; "
            f"{mend}, or go on from its adapters in a new run, with init_adapter"
        )
    wanted = {job.name: len(job.global_batches) for job in loaded.jobs}
    for job in plan.jobs:
        num_steps = len(job.global_batches)
        if wanted.get(job.name, num_steps) != num_steps:
            raise PlanError(
                f"{path} trains adapter '{job.name}' for {counted(num_steps, 'step')}, the job file for "
                f"{wanted[job.name]}; {mend}"
            )
