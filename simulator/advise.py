"""advise: of all ways to lay a job file on so many GPUs, the ones that fit, by the tokens/s that are foretold."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ..planner.errors import PlanError
from ..planner.gpus import Gpus
from ..planner.inputs.load_jobs import load_jobs
from ..planner.inputs.loaded_jobs import JobSettings
from ..planner.job_plan import plan_jobs
from ..planner.jobs import Job
from ..planner.memory_decision import check_profile_model
from ..planner.plan import Plan
from ..traces.costs import CostProfile
from ..traces.counted import counted
from ..traces.profiles import load_profile
from ..traces.timeline import Timeline
from .asked_gpus import AskedGpus
from .cluster import Cluster
from .cluster_file import load_cluster
from .estimate import Estimate, estimate_plan

Progress = Callable[[str, float], None]

SIZES = (1, 2, 4, 8)
"""Microbatches of so many times sequence_len, which they must hold."""
MOST_TOKENS = 16384
"""No larger ones are tried unless sequence_len asks for it: profiles measure up to here."""
PLAN_SECONDS = 5.0
"""For each plan: what is compared here must be good, not the best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviseRequest:
    """The options of `loraplex advise`; None where the user said nothing."""

    job_file: Path
    profile: str
    gpus: AskedGpus = field(default_factory=AskedGpus)
    cluster: Path | None = None
    """A cluster file, for what transfers cost."""
    num_batches: int | None = 32
    """So many first global batches of each adapter; None: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a job file says of where its work goes."""

    num_stages: int
    num_replicas: int
    microbatch_tokens: int

    @classmethod
    def of(cls, settings: JobSettings) -> "Layout":
        """The job file's own."""
        return cls(
            num_stages=settings.num_stages,
            num_replicas=settings.num_replicas,
            microbatch_tokens=settings.microbatch_tokens,
        )

    def text(self) -> str:
        """In words."""
        tokens = counted(self.microbatch_tokens, "token")
        return f"{counted(self.num_stages, 'stage')}, {counted(self.num_replicas, 'replica')}, {tokens}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """A layout, and how it would go."""

    layout: Layout
    estimate: Estimate

    def timeline(self) -> Timeline:
        """As simulated by the profile, which is always there."""
        assert self.estimate.simulation is not None
        return self.estimate.simulation.timeline

    def tokens_per_s(self) -> float:
        """Real tokens."""
        return 1e3 * self.estimate.plan.num_tokens() / self.timeline().makespan_ms()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Advice:
    """All candidates, the best first: those that fit, by tokens/s. Of equal plans the one with the smallest size."""

    candidates: tuple[Candidate, ...]
    asked: Layout
    """The job file's own."""
    gpus: Gpus
    profile: CostProfile
    num_batches: int
    """Global batches of the adapter that has most, as far as they were looked at."""
    free_transfers: bool
    """Nothing is known of what a message between GPUs takes."""
    impossible: tuple[tuple[Layout, str], ...] = field(default=())
    """Layouts that no plan was found for, and why."""


def advise(request: AdviseRequest, *, progress: Progress | None = None) -> Advice:
    """Plan and simulate every layout. Raises JobError, PlanError or TraceError naming what is wrong."""
    loaded = load_jobs(request.job_file, allow_lengths=True, progress=progress)
    profile = load_profile(request.profile)
    check_profile_model(profile, loaded.settings.base_model)
    cluster = load_cluster(request.cluster) if request.cluster else Cluster()
    gpus = request.gpus.to_lay_on(loaded.settings, profile)
    looked_at = replace(loaded, jobs=_first_batches(loaded.jobs, request.num_batches))
    asked = Layout.of(loaded.settings)
    found: list[Candidate] = []
    impossible: list[tuple[Layout, str]] = []
    layouts = tuple(layouts_of(loaded.settings, num_gpus=len(gpus.free_bytes)))
    for number, layout in enumerate(layouts):
        if progress is not None:
            progress(layout.text(), number / len(layouts))
        laid = replace(looked_at, settings=replace(loaded.settings, **asdict(layout)))
        try:
            plan = plan_jobs(laid, profile=profile, time_limit_s=PLAN_SECONDS)
        except PlanError as error:
            impossible.append((layout, str(error)))
            continue
        # Where global batches are small, room for more changes nothing.
        if layout == asked or not any(_is_same(plan, other.estimate.plan) for other in found):
            estimate = estimate_plan(
                plan, laid, asked=loaded.settings.recompute, profile=profile, gpus=gpus, cluster=cluster
            )
            found.append(Candidate(layout=layout, estimate=estimate))
    if not found:
        layout, why = impossible[0]
        raise PlanError(
            f"none of the ways to lay it on {counted(len(gpus.free_bytes), 'GPU')} can be planned, "
            f"for example {layout.text()}: {why}"
        )
    if progress is not None:
        progress("done", 1.0)
    return Advice(
        candidates=tuple(sorted(found, key=lambda one: (not one.estimate.decision.fits(), -one.tokens_per_s()))),
        asked=asked,
        gpus=gpus,
        profile=profile,
        num_batches=max(len(job.global_batches) for job in looked_at.jobs),
        free_transfers=len(gpus.free_bytes) > 1
        and cluster.node_link is None
        and profile.link.bytes_per_ms == float("inf"),
        impossible=tuple(impossible),
    )


def layouts_of(settings: JobSettings, *, num_gpus: int) -> Iterator[Layout]:
    """Every split of the GPUs into stages and replicas, with every size, of which the job file's own is one."""
    sizes = microbatch_sizes(settings)
    for num_stages in range(1, min(num_gpus, settings.base_model.num_layers) + 1):
        if num_gpus % num_stages == 0:
            for size in sizes:
                yield Layout(num_stages=num_stages, num_replicas=num_gpus // num_stages, microbatch_tokens=size)


def microbatch_sizes(settings: JobSettings) -> tuple[int, ...]:
    """Tokens a microbatch may hold, ascending."""
    least = settings.sequence_len
    larger = (least * times for times in SIZES if least * times <= MOST_TOKENS)
    return tuple(sorted({least, settings.microbatch_tokens, *larger}))


def _first_batches(jobs: Sequence[Job], num_batches: int | None) -> tuple[Job, ...]:
    return tuple(replace(job, global_batches=job.global_batches[:num_batches]) for job in jobs)


def _is_same(plan: Plan, other: Plan) -> bool:
    return plan.num_stages == other.num_stages and plan.microbatches == other.microbatches
