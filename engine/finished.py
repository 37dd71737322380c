"""Whether a run has come to its end: then there is nothing to resume."""

from pathlib import Path

from ..planner.plan import Plan
from ..planner.plan_file import load_plan
from ..traces.run_folder import MEASURED, PLAN, RANKING
from .output import ADAPTERS


def is_finished(output_dir: Path, plan: Plan) -> bool:
    """Whether the folder holds all that a run of the plan's jobs leaves.

    Its measured timeline is the mark: `forget_end` removes it before a run begins, and it is written last. Stages,
    replicas and microbatches may be others than the plan's.
    """
    if not (output_dir / MEASURED).is_file() or not (output_dir / PLAN).is_file():
        return False
    return load_plan(output_dir / PLAN).jobs == plan.jobs


def forget_end(output_dir: Path) -> None:
    """Remove the mark of a finished run, and how its adapters did: what follows is another one, or one that goes on."""
    for name in (MEASURED, RANKING):
        (output_dir / name).unlink(missing_ok=True)


def finished_text(output_dir: Path, job_file: Path) -> str:
    """For a user who asks to resume such a run."""
    return (
        f"the run in {output_dir} is finished, and nothing was done: its adapters lie in {output_dir / ADAPTERS}. To "
        "train further, begin a new run from them, with init_adapter and another output_dir; --overwrite in place of "
        f"--resume trains {job_file} anew"
    )
