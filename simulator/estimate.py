"""estimate: what a job file will take, before anything runs. Memory of every stage, time, and what limits both."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..planner.build_program import build_program
from ..planner.errors import PlanError
from ..planner.inputs.load_jobs import load_jobs
from ..planner.inputs.loaded_jobs import LoadedJobs
from ..planner.make_plan import make_plan
from ..planner.memory_decision import MemoryDecision, check_profile_model, decide_memory
from ..planner.plan import Plan
from ..planner.plan_file import load_plan
from ..traces.costs import CostProfile
from ..traces.memory_costs import RecomputeChoice
from ..traces.profiles import load_profile
from .simulate import Hardware, Simulation, simulate

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateRequest:
    """The options of `loraplex estimate`; None where the user said nothing."""

    job_file: Path
    plan_file: Path | None = None
    profile: str | None = None
    """A cost profile; without one, memory comes from the model's shapes and times are not known."""
    device_bytes: float | None = None
    """Memory of each device; the profile's where absent."""
    recompute: RecomputeChoice | None = None
    """The job file's where absent."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimate:
    """What a run will take."""

    plan: Plan
    decision: MemoryDecision
    simulation: Simulation | None
    """None without a profile."""


def estimate(request: EstimateRequest, *, progress: Progress | None = None) -> Estimate:
    """Plan the job file as `loraplex train` does, and tell what the run takes.

    Raises JobError, PlanError or TraceError naming what is wrong.
    """
    loaded = load_jobs(request.job_file, allow_lengths=True, progress=progress)
    profile = _profile(request, loaded)
    plan = _plan(request, loaded, progress)
    decision = decide_memory(
        plan,
        loaded.settings.base_model,
        asked=request.recompute or loaded.settings.recompute,
        profile=profile,
        capacity_bytes=request.device_bytes,
    )
    simulation = None
    if profile is not None:
        hardware = Hardware(profile=replace(profile, memory=decision.memory), recompute=decision.need.recompute)
        simulation = simulate(build_program(plan), plan, hardware)
    return Estimate(plan=plan, decision=decision, simulation=simulation)


def _profile(request: EstimateRequest, loaded: LoadedJobs) -> CostProfile | None:
    if request.profile is None:
        return None
    profile = load_profile(request.profile)
    # Before the time that planning takes.
    check_profile_model(profile, loaded.settings.base_model)
    return profile


def _plan(request: EstimateRequest, loaded: LoadedJobs, progress: Progress | None) -> Plan:
    if request.plan_file is not None:
        return _own_plan(request.plan_file, loaded)
    wanted = loaded.settings
    return make_plan(
        loaded.jobs,
        num_stages=wanted.num_stages,
        num_replicas=wanted.num_replicas,
        microbatch_tokens=wanted.microbatch_tokens,
        schedule=wanted.schedule,
        data_fingerprint=loaded.fingerprint,
        progress=progress,
    )


def _own_plan(path: Path, loaded: LoadedJobs) -> Plan:
    plan = load_plan(path)
    names, own_names = [job.name for job in plan.jobs], [job.name for job in loaded.jobs]
    if names != own_names or plan.data_fingerprint != loaded.fingerprint:
        raise PlanError(
            f"{path} is the plan of other adapters or other data ({', '.join(names)}) than {loaded.settings.job_file} "
            f"({', '.join(own_names)}); make it anew with loraplex plan, or leave it out"
        )
    return plan
