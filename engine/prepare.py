"""What must agree before anything runs: job file, data, plan, program, model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..planner.build_program import build_program
from ..planner.check_program import check_program
from ..planner.errors import PlanError
from ..planner.inputs.load_jobs import load_jobs
from ..planner.inputs.loaded_jobs import LoadedJobs
from ..planner.job_plan import check_plan_belongs
from ..planner.plan import Plan
from ..planner.plan_file import load_plan
from ..planner.program import Program
from ..traces.run_folder import PLAN
from .base_folder import check_has_weights
from .checkpoint import newest_whole
from .init_adapter import check_init_adapters
from .itinerary import check_runnable
from .run_settings import RunSettings

ProgressCallback = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Everything a run needs that is not on a device."""

    loaded: LoadedJobs
    plan: Plan
    program: Program
    output_dir: Path


def load(settings: RunSettings, *, progress: ProgressCallback | None = None) -> LoadedJobs:
    """Read job file and texts. Raises JobError, also where they cannot be trained on."""
    loaded = load_jobs(settings.job_file, override=settings.override, progress=progress)
    check_has_weights(loaded.settings.base_model)
    return loaded


def prepare(settings: RunSettings, *, loaded: LoadedJobs | None = None) -> Prepared:
    """Read the plan and check that it belongs to job file and texts, which `load` reads where they are not given.

    Raises JobError or PlanError.
    """
    loaded = load(settings) if loaded is None else loaded
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
