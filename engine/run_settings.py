"""What a user asks of a training run. Importing this needs no torch: a worker reads its command line first."""

from dataclasses import dataclass
from pathlib import Path

from ..planner.errors import PlanError
from ..planner.inputs.override import AS_WRITTEN, Override
from ..planner.jobs import LoggerName
from ..traces.memory_costs import RecomputeChoice


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
            ("--device", None if self.device == "auto" else self.device),
            ("--recompute", self.recompute),
        ):
            words += [] if value is None else [option, str(value)]
        for name in self.report_to:
            words += ["--report-to", name]
        words += self.override.arguments()
        words += ["--overwrite"] if self.overwrite else []
        return [*words, "--resume"] if self.resume else words
