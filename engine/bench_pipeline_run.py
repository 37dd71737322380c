"""`loraplex bench pipeline` from end to end: profile, plan, foretell, execute, on a GPU each or one for all.

Foretelling is handed in by the command, since the engine knows no simulator.
"""

import datetime
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..planner.errors import JobError, PlanError
from ..planner.inputs.base_model import TINY
from ..planner.jobs import Job
from ..planner.make_plan import make_plan
from ..planner.plan import Plan
from ..planner.plan_file import save_plan
from ..planner.systems import SystemRun, all_systems
from ..traces.costs import CostProfile
from ..traces.timeline import Timeline
from .bench_pipeline import (
    SLOWDOWN_GOAL,
    THREAD_PERCENTAGES,
    BenchRequest,
    Order,
    Sharing,
    plan_path,
    sharing_path,
    spans_path,
    write_job_file,
)
from .hand_in import join_timelines
from .launch import launch
from .mps import MpsState, mps
from .profile import profile_model

OURS = "loraplex"
OWN_GPU = "every stage has a GPU of its own"
_PLANNING_S = 10.0
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Foretold:
    """What a simulator says of a system."""

    schedule: str
    """Of its Programs."""
    timeline: Timeline
    """All of its plans, one after another."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """One system, foretold and executed."""

    system: SystemRun
    foretold: Foretold
    measured: tuple[Timeline, ...]
    """One for each of its plans."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BenchResult:
    """All systems, ours first, and under which conditions they ran."""

    outcomes: tuple[Outcome, ...]
    profile: CostProfile
    """What was foretold with."""
    facts: Mapping[str, object]


def run_bench(
    request: BenchRequest, *, foretell: Callable[[SystemRun, CostProfile], Foretold], say: Say
) -> BenchResult:
    """Raises InputError for a request that cannot be met, EngineError when a process ends."""
    with tempfile.TemporaryDirectory(prefix="loraplex-pipeline-") as name:
        folder = Path(name)
        model, jobs = request.write_model(folder), request.jobs()
        if request.model != TINY and not has_gpu(request.device):
            raise JobError(
                f"--model {request.model} is too large where stages run on the CPU; choose --model {TINY}, or run it "
                "where there is a GPU"
            )
        job_file = write_job_file(
            jobs, model=model, num_stages=request.num_stages, microbatch_tokens=request.microbatch_tokens
        )
        rivals = all_systems(jobs, num_stages=request.num_stages, microbatch_tokens=request.microbatch_tokens)
        with _conditions(request, rivals[-1].plans[0], model=model, folder=folder, say=say) as state:
            say("profiling")
            profile = _profile(request, model=model, job_file=job_file)
            say("planning and foretelling")
            systems = (_ours(request, jobs, profile), *rivals)
            foretold = [foretell(system, profile) for system in systems]
            say("executing")
            schedules = [one.schedule for one, system in zip(foretold, systems, strict=True) for _ in system.plans]
            plans = [plan for system in systems for plan in system.plans]
            timelines = iter(_execute(plans, schedules, request, model=model, folder=folder))
        measured = [tuple(next(timelines) for _ in system.plans) for system in systems]
        facts = _facts(request, state, _sharing(folder), profile, machine=measured[0][0].origin)
    outcomes = zip(systems, foretold, measured, strict=True)
    return BenchResult(
        outcomes=tuple(Outcome(system=system, foretold=one, measured=own) for system, one, own in outcomes),
        profile=profile,
        facts=facts,
    )


def has_gpu(device: str) -> bool:
    """Whether stages will run on a GPU. Does not start CUDA, which must not come before MPS."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    return device != "cpu" and torch.cuda.is_available()


@contextmanager
def _conditions(request: BenchRequest, plan: Plan, *, model: Path, folder: Path, say: Say) -> Iterator[MpsState]:
    if not has_gpu(request.device):
        yield MpsState(thread_percentage=None, why_not="stages run on the CPU")
        return
    if torch.cuda.device_count() >= request.num_stages:
        yield MpsState(thread_percentage=None, why_not=OWN_GPU)
        return
    if request.thread_percentage == "auto":
        share = _find_share(request, plan, model=model, folder=folder, say=say)
    else:
        share = _given_share(request.thread_percentage)
    with mps(share) as state:
        yield state


def _given_share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 100:
        raise PlanError(f"--thread-percentage {text} must be a number above 0, at most 100, or auto")
    return share


def _find_share(request: BenchRequest, plan: Plan, *, model: Path, folder: Path, say: Say) -> float:
    # The largest share at which a stage takes as long beside busy neighbours as beside idle ones.
    for share in THREAD_PERCENTAGES:
        say(f"trying {share:g} % of the GPU for each stage")
        with mps(share) as state:
            _start([plan], [], request, model=model, folder=folder)
        if state.thread_percentage is None or _sharing(folder).slowdown() <= SLOWDOWN_GOAL:
            return share
    return THREAD_PERCENTAGES[-1]


def _profile(request: BenchRequest, *, model: Path, job_file: Path) -> CostProfile:
    if request.profile_file is not None:
        return CostProfile.load(request.profile_file)
    return profile_model(
        str(model),
        output=model.parent / "profile.json",
        job_file=job_file,
        random_weights=True,
        num_stages=request.num_stages,
        capacity_tokens=request.microbatch_tokens,
        device="cuda" if has_gpu(request.device) else "cpu",
    )


def _ours(request: BenchRequest, jobs: Sequence[Job], profile: CostProfile) -> SystemRun:
    plan = make_plan(
        jobs,
        num_stages=request.num_stages,
        microbatch_tokens=request.microbatch_tokens,
        time_limit_s=_PLANNING_S,
        profile=profile,
    )
    return SystemRun(name=OURS, plans=(plan,), num_tokens=plan.num_tokens(), about=f"our plan ({plan.strategy})")


def _execute(
    plans: Sequence[Plan], schedules: Sequence[str], request: BenchRequest, *, model: Path, folder: Path
) -> tuple[Timeline, ...]:
    _start(plans, schedules, request, model=model, folder=folder)
    return tuple(
        join_timelines([Timeline.load(spans_path(folder, number, stage)) for stage in range(request.num_stages)])
        for number in range(len(plans))
    )


def _start(
    plans: Sequence[Plan], schedules: Sequence[str], request: BenchRequest, *, model: Path, folder: Path
) -> None:
    for number, plan in enumerate(plans):
        save_plan(plan, plan_path(folder, number))
    Order(model=str(model), device=request.device, num_stages=request.num_stages, schedules=tuple(schedules)).save(
        folder
    )
    launch("loraplex.engine.bench_pipeline_worker", [str(folder)], work_dir=folder, num_workers=request.num_stages)


def _sharing(folder: Path) -> Sharing:
    fields = json.loads(sharing_path(folder).read_text(encoding="utf-8"))
    return Sharing(alone_ms=tuple(fields["alone_ms"]), together_ms=tuple(fields["together_ms"]))


def _facts(
    request: BenchRequest, state: MpsState, sharing: Sharing, profile: CostProfile, *, machine: str
) -> dict[str, object]:
    asked = asdict(request) | {"profile_file": request.profile_file and str(request.profile_file)}
    return {
        "gpu": f"{machine} x{request.num_stages}" if state.why_not == OWN_GPU else machine,
        "date": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "request": asked,
        "thread_percentage": state.thread_percentage,
        "why_no_mps": state.why_not,
        "sharing": asdict(sharing) | {"slowdown": sharing.slowdown()},
        "profile": {
            "source": profile.source,
            "fit_error_median": profile.fit_error_median,
            "fit_error_worst": profile.fit_error_worst,
        },
    }
