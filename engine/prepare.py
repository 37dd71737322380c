"""What must agree before anything runs: job file, data, plan, program, model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..planner.build_program import build_program
from ..planner.check_program import check_program
from ..planner.errors import PlanError
from ..planner.inputs.load_jobs import load_jobs
from ..planner.inputs.loaded_jobs import LoadedJobs
from ..planner.inputs.override import AS_WRITTEN, Override
from ..planner.job_plan import check_plan_belongs
from ..planner.jobs import LoggerName
from ..planner.plan import Plan
from ..planner.plan_file import load_plan
from ..planner.program import Program
from ..traces.memory_costs import RecomputeChoice
from ..traces.run_folder import PLAN
from .base_folder import check_has_weights
from .checkpoint import newest_whole
from .init_adapter import check_init_adapters
from .itinerary import check_runnable

ProgressCallback = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What a user asks of a training run; every worker gets the same."""

    job_file: Path
    plan_file: Path | None = None
    """plan.json of the output folder when absent."""
    output_dir: Path | None = None
    """The job file's when absent."""
    resume: bool = False
    overwrite: bool = False
    """Start anew where the output folder has checkpoints of an earlier run, which are removed."""
    checkpoint_every: int | None = None
    """Microbatches between checkpoints; none are written when absent."""
    device: str = "auto"
    """auto, cpu or cuda."""
    recompute: RecomputeChoice | None = None
    """What the backward makes again; the job file's when absent."""
    profile: str | None = None
    """Cost profile whose memory counts in settling that; the model's shapes when absent. Workers need it no more."""
    report_to: tuple[LoggerName, ...] = ()
    """Where to log besides the metrics files; the job file's when empty."""
    override: Override = AS_WRITTEN
    """What is said of the base model instead of the job file."""

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise PlanError("--resume goes on and --overwrite starts anew; give one of them")

    def arguments(self) -> list[str]:
        """The command line of a worker that does what these settings ask."""
        words = [str(self.job_file)]
        for option, value in (
            ("--plan", self.plan_file),
            ("--output", self.output_dir),
            ("--checkpoint-every", self.checkpoint_every),
            ("--device", self.device),
            ("--recompute", self.recompute),
        ):
            words += [] if value is None else [option, str(value)]
        for name in self.report_to:
            words += ["--report-to", name]
        words += self.override.arguments()
        words += ["--overwrite"] if self.overwrite else []
        return [*words, "--resume"] if self.resume else words


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Everything a run needs that is not on a device."""

    loaded: LoadedJobs
    plan: Plan
    program: Program
    output_dir: Path


def prepare(settings: RunSettings, *, progress: ProgressCallback | None = None) -> Prepared:
    """Read job file, texts and plan and check that they belong together. Raises JobError or PlanError."""
    loaded = load_jobs(settings.job_file, override=settings.override, progress=progress)
    check_has_weights(loaded.settings.base_model)
    check_init_adapters(loaded)
    output_dir = settings.output_dir or loaded.settings.output_dir
    check_nothing_lost(settings, output_dir)
    path = settings.plan_file or output_dir / PLAN
    if settings.resume and not path.is_file():
        raise PlanError(f"{path} does not exist, so there is no run to go on with; train without --resume")
    if not path.is_file():
        raise PlanError(f"{path} does not exist; make it with loraplex plan {settings.job_file} -o {path}")
    plan = load_plan(path)
    check_plan_belongs(plan, loaded, path=path, resumed=settings.resume)
    program = build_program(plan)
    check_program(program, plan)
    check_runnable(program)
    return Prepared(loaded=loaded, plan=plan, program=program, output_dir=output_dir)


def check_nothing_lost(settings: RunSettings, output_dir: Path) -> None:
    """Raise PlanError where a run that starts anew would remove checkpoints and nobody has said that it may."""
    newest = None if settings.resume or settings.overwrite else newest_whole(output_dir)
    if newest is not None:
        raise PlanError(
            f"{newest} is a checkpoint of an earlier run; go on from it with --resume, start anew with --overwrite, "
            "which removes it, or give another --output"
        )
