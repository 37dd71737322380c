"""estimate: what a job file will take, before anything runs. Memory of every stage, time, and what limits both."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..planner.build_program import build_program
from ..planner.errors import PlanError
from ..planner.inputs.load_jobs import load_jobs
from ..planner.inputs.loaded_jobs import LoadedJobs
from ..planner.make_plan import make_plan
from ..planner.memory_check import Change, Need, changes, cheapest_that_fits
from ..planner.memory_formula import memory_for_jobs, memory_of_shapes
from ..planner.model_shapes import ModelShapes
from ..planner.plan import Plan
from ..planner.plan_file import load_plan
from ..traces.costs import CostProfile, MemoryCosts, RecomputeMode
from ..traces.memory_costs import RecomputeChoice, asked_recompute
from ..traces.profiles import load_profile
from .memory import tracks_memory
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
    memory_from: str
    """Where the numbers of memory come from: the profile's name, or `shapes`."""
    need: Need
    capacity_bytes: float | None
    """None where no device's memory is known."""
    changes: tuple[Change, ...]
    """What would make it fit; empty where it fits, or where no capacity is known."""
    simulation: Simulation | None
    """None without a profile."""

    def fits(self) -> bool:
        """Whether every stage fits into its device, as far as known."""
        return self.capacity_bytes is None or self.need.peak_bytes() <= self.capacity_bytes

    def num_steps(self) -> int:
        """Optimizer steps of all adapters together."""
        return sum(len(job.global_batches) for job in self.plan.jobs)

    def step_ms(self) -> float | None:
        """Mean time from one optimizer step, of whichever adapter, to the next."""
        if self.simulation is None or not self.num_steps():
            return None
        return self.simulation.makespan_ms() / self.num_steps()


def estimate(request: EstimateRequest, *, progress: Progress | None = None) -> Estimate:
    """Plan the job file as `loraplex train` does, and tell what the run takes.

    Raises JobError, PlanError or TraceError naming what is wrong.
    """
    loaded = load_jobs(request.job_file, allow_lengths=True, progress=progress)
    profile = _profile(request, loaded)
    shapes = ModelShapes.of(loaded.settings.base_model)
    plan = _plan(request, loaded, progress)
    asked = request.recompute or loaded.settings.recompute
    measured = profile is not None and tracks_memory(profile.memory)
    memory = _memory(profile if measured else None, shapes, plan, request)
    in_4bit = loaded.settings.base_model.is_in_4bit()
    if in_4bit:
        memory = _in_4bit(memory, shapes)
    need = cheapest_that_fits(plan, memory=memory, num_layers=shapes.num_layers, asked=asked_recompute(asked))
    known = memory.capacity_bytes < float("inf")
    found: tuple[Change, ...] = ()
    if need.peak_bytes() > memory.capacity_bytes:
        four_bit = None if in_4bit else _in_4bit(memory, shapes)
        found = changes(plan, need, memory=memory, num_layers=shapes.num_layers, four_bit=four_bit)
    return Estimate(
        plan=plan,
        memory_from=profile.name if measured and profile is not None else "shapes",
        need=need,
        capacity_bytes=memory.capacity_bytes if known else None,
        changes=found,
        simulation=None if profile is None else _simulate(plan, replace(profile, memory=memory), need.recompute),
    )


def _profile(request: EstimateRequest, loaded: LoadedJobs) -> CostProfile | None:
    if request.profile is None:
        return None
    profile, model = load_profile(request.profile), loaded.settings.base_model
    if profile.num_layers != model.num_layers:
        raise PlanError(
            f"profile '{profile.name}' is of a model of {profile.num_layers} layers, the base model {model.name} has "
            f"{model.num_layers}; give the profile of this model, loraplex profile {model.name} measures one"
        )
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


def _memory(measured: CostProfile | None, shapes: ModelShapes, plan: Plan, request: EstimateRequest) -> MemoryCosts:
    if measured is None:
        memory = memory_of_shapes(shapes, plan.jobs, num_stages=plan.num_stages)
    else:
        memory = memory_for_jobs(measured.memory, shapes, plan.jobs)
    return memory if request.device_bytes is None else replace(memory, capacity_bytes=request.device_bytes)


def _in_4bit(memory: MemoryCosts, shapes: ModelShapes) -> MemoryCosts:
    # Embedding and head stay as they are.
    return replace(memory, layer_weight_bytes=shapes.layer_weight_bytes(load_in_4bit=True))


def _simulate(plan: Plan, profile: CostProfile, recompute: RecomputeMode) -> Simulation:
    return simulate(build_program(plan), plan, Hardware(profile=profile, recompute=recompute))
