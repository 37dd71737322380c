"""The work behind `loraplex plan`: from a job file or bare lengths to the plan that was asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..traces.costs import CostProfile
from ..traces.profiles import load_profile
from .assumed_costs import assumed_costs
from .errors import JobError
from .inputs.lengths_jobs import jobs_from_lengths
from .jobs import Job
from .make_plan import make_plan
from .packing.capacity import CapacityTrial, try_capacities
from .packing.search import Progress
from .plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """The options of `loraplex plan`; None and empty where the user said nothing."""

    job_file: Path | None = None
    lengths: tuple[str, ...] = ()
    global_batch_sizes: tuple[int, ...] = ()
    num_batches: tuple[int, ...] = ()
    overlong: str = "error"
    num_stages: int | None = None
    num_replicas: int | None = None
    capacities: tuple[int, ...] = ()
    pad_multiple: int = 1
    schedule: str | None = None
    strategy: str = "auto"
    objective: str = "makespan"
    profile: str | None = None
    time_limit_s: float = 30.0
    solver: str = "auto"
    workers: int = 1
    backend: str = "loky"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """A request with the job file's answers filled in."""

    jobs: tuple[Job, ...]
    """Empty when planning from lengths: they are cut anew for each capacity."""
    fingerprint: str
    num_stages: int
    num_replicas: int
    schedule: str
    capacities: tuple[int, ...]


def make_requested_plan(request: PlanRequest) -> tuple[Plan, tuple[CapacityTrial, ...]]:
    """The plan, and where several capacities were asked for, what each led to. Progress goes to stderr."""
    _check_request(request)
    profile = load_profile(request.profile) if request.profile else None
    with progress_on_stderr() as progress:
        settings = _settings(request, progress)

        def plan_with(capacity: int) -> Plan:
            return _plan(request, settings, capacity=capacity, profile=profile, progress=progress)

        if len(settings.capacities) == 1:
            return plan_with(settings.capacities[0]), ()
        trials = try_capacities(settings.capacities, plan_with=plan_with, profile=profile)
    assert trials[0].plan is not None
    return trials[0].plan, trials


def _check_request(request: PlanRequest) -> None:
    for option, value, allowed in (
        ("overlong", request.overlong, ("error", "truncate", "skip")),
        ("backend", request.backend, ("loky", "dask", "ray")),
    ):
        if value not in allowed:
            raise JobError(f"--{option} {value} is unknown; choose one of {', '.join(allowed)}")
    if request.workers < 1:
        raise JobError(f"--workers {request.workers} must be 1 or more; raise it")
    if request.job_file is not None and request.overlong != "error":
        raise JobError(f"--overlong {request.overlong} goes with --lengths; a job file says it by long_samples")


@contextmanager
def progress_on_stderr(line: str = "planning: {what}; {share:.2%} above the lower bound so far") -> Iterator[Progress]:
    """A spinner with what is being done and how it stands, gone when it is over."""
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    # Where nobody watches, a spinner would leave an empty line.
    with Bars(*columns, console=console, transient=True, disable=not console.is_interactive) as bars:
        task = bars.add_task("starting", total=None)

        def tell(what: str, share: float) -> None:
            bars.update(task, description=line.format(what=what, share=share))

        yield tell


def _settings(request: PlanRequest, progress: Progress) -> _Settings:
    if (request.job_file is None) == (not request.lengths):
        raise JobError("give either a job file or --lengths NAME=FILE.csv, and not both")
    if request.job_file is None:
        return _lengths_settings(request)
    if request.global_batch_sizes or request.num_batches:
        raise JobError("--global-batch-size and --num-batches go with --lengths; a job file says them per adapter")
    from .inputs.load_jobs import load_jobs
    from .job_plan import spread_otherwise

    loaded = load_jobs(
        request.job_file, allow_lengths=True, progress=lambda what, share: progress(f"{what} ({share:.0%})", 0.0)
    )
    loaded = spread_otherwise(loaded, num_stages=request.num_stages, num_replicas=request.num_replicas)
    return _Settings(
        jobs=loaded.jobs,
        fingerprint=loaded.fingerprint,
        num_stages=loaded.settings.num_stages,
        num_replicas=loaded.settings.num_replicas,
        schedule=request.schedule or loaded.settings.schedule,
        capacities=request.capacities or (loaded.settings.microbatch_tokens,),
    )


def _lengths_settings(request: PlanRequest) -> _Settings:
    if not request.capacities or not request.global_batch_sizes:
        raise JobError("--lengths needs --microbatch-tokens and --global-batch-size; give both")
    return _Settings(
        jobs=(),
        fingerprint="",
        num_stages=_given(request.num_stages, 1),
        num_replicas=_given(request.num_replicas, 1),
        schedule=request.schedule or "1f1b",
        capacities=request.capacities,
    )


def _given(value: int | None, default: int) -> int:
    # 0 is a mistake to be told, not an absence.
    return default if value is None else value


def _plan(
    request: PlanRequest, settings: _Settings, *, capacity: int, profile: CostProfile | None, progress: Progress
) -> Plan:
    jobs = settings.jobs or jobs_from_lengths(
        request.lengths,
        global_batch_sizes=request.global_batch_sizes,
        num_batches=request.num_batches,
        microbatch_tokens=capacity,
        overlong=request.overlong,
    )
    if profile is None and request.job_file is not None:
        # As `loraplex train` does.
        profile = assumed_costs(num_workers=settings.num_stages * settings.num_replicas)
    return make_plan(
        jobs,
        num_stages=settings.num_stages,
        num_replicas=settings.num_replicas,
        microbatch_tokens=capacity,
        pad_multiple=request.pad_multiple,
        schedule=settings.schedule,
        strategy=request.strategy,
        objective=request.objective,
        time_limit_s=request.time_limit_s,
        profile=profile,
        data_fingerprint=settings.fingerprint,
        solver=request.solver,
        workers=request.workers,
        backend=request.backend,
        progress=progress,
    )
