"""estimate: what a job file will take, before anything runs. Memory of every stage, time, and what limits both."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..planner.build_program import build_program
from ..planner.gpus import Gpus
from ..planner.inputs.load_jobs import load_jobs
from ..planner.inputs.loaded_jobs import LoadedJobs
from ..planner.job_plan import check_plan_belongs, plan_jobs, spread_otherwise
from ..planner.memory_decision import MemoryDecision, check_profile_model, decide_memory
from ..planner.plan import Plan
from ..planner.plan_file import load_plan
from ..traces.costs import CostProfile
from ..traces.memory_costs import RecomputeChoice
from ..traces.profiles import load_profile
from .asked_gpus import AskedGpus
from .cluster import Cluster
from .errors import SimulationError
from .simulate import Hardware, Simulation, simulate

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateRequest:
    """The options of `loraplex estimate`; None where the user said nothing."""

    job_file: Path
    plan_file: Path | None = None
    profile: str | None = None
    """A cost profile; without one, memory comes from the model's shapes and times are not known."""
    gpus: AskedGpus = field(default_factory=AskedGpus)
    recompute: RecomputeChoice | None = None
    """The job file's where absent."""
    num_stages: int | None = None
    """The job file's where absent, like the replicas; a plan has its own."""
    num_replicas: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimate:
    """What a run will take."""

    plan: Plan
    decision: MemoryDecision
    simulation: Simulation | None
    """None without a profile."""


def estimate(request: EstimateRequest, *, progress: Progress | None = None) -> Estimate:
    """Plan the job file as `loraplex train` does, and tell what the run takes.

    Raises SimulationError, JobError, PlanError or TraceError naming what is wrong.
    """
    if request.plan_file is not None and (request.num_stages, request.num_replicas) != (None, None):
        raise SimulationError(
            f"{request.plan_file} has its own stages and replicas; leave out --plan, or --stages and --replicas"
        )
    loaded = load_jobs(request.job_file, allow_lengths=True, progress=progress)
    loaded = spread_otherwise(loaded, num_stages=request.num_stages, num_replicas=request.num_replicas)
    profile = _profile(request, loaded)
    plan = _plan(request, loaded, profile, progress)
    return estimate_plan(
        plan,
        loaded,
        asked=request.recompute or loaded.settings.recompute,
        profile=profile,
        gpus=request.gpus.for_workers(profile),
    )


def estimate_plan(
    plan: Plan,
    loaded: LoadedJobs,
    *,
    asked: RecomputeChoice,
    profile: CostProfile | None,
    gpus: Gpus | None,
    cluster: Cluster | None = None,
) -> Estimate:
    """What a run of this plan of a job file takes, with as little recomputation as fits or as is `asked` for."""
    decision = decide_memory(
        plan,
        loaded.settings.base_model,
        asked=asked,
        evaluation=loaded.evaluation,
        profile=profile,
        gpus=gpus,
    )
    simulation = None
    if profile is not None:
        known = replace(profile, memory=decision.memory)
        hardware = Hardware(profile=known, cluster=cluster or Cluster(), recompute=decision.need.recompute)
        simulation = simulate(build_program(plan), plan, hardware)
    return Estimate(plan=plan, decision=decision, simulation=simulation)


def _profile(request: EstimateRequest, loaded: LoadedJobs) -> CostProfile | None:
    if request.profile is None:
        return None
    profile = load_profile(request.profile)
    # Before the time that planning takes.
    check_profile_model(profile, loaded.settings.base_model)
    return profile


def _plan(request: EstimateRequest, loaded: LoadedJobs, profile: CostProfile | None, progress: Progress | None) -> Plan:
    if request.plan_file is None:
        return plan_jobs(loaded, profile=profile, progress=progress)
    plan = load_plan(request.plan_file)
    check_plan_belongs(plan, loaded, path=request.plan_file)
    return plan
