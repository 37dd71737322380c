"""What a run made, read from its output folder: adapters, losses, tokens/s, and what went wrong."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..planner.trained import trained_tokens
from ..traces.counted import counted
from ..traces.memory_costs import RecomputeMode
from ..traces.ranking import Ranking, load_rankings, rankings_document
from ..traces.run_folder import MEASURED, RANKING, metrics_name
from ..traces.timeline import Timeline
from .evaluation_records import EvaluationRecord, read_evaluations
from .learning_rate import RISKY_RATE
from .metrics import StepRecord, read_metrics, steps_kept, steps_undone
from .output import ADAPTERS, evaluations_name, read_validation
from .prepare import Prepared
from .reports import what_broke


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedAdapter:
    """What became of one adapter."""

    name: str
    folder: Path
    metrics_file: Path
    first: StepRecord
    last: StepRecord
    validation: Mapping[str, float]
    """Loss on its validation samples `before` and `after`; empty where val_split kept none."""
    steps_taken: int
    skipped: tuple[int, ...] = ()
    """Steps that were left out since their loss or gradient was no finite number."""
    undone: tuple[int, ...] = ()
    """Steps at a risky rate that were taken back, since they are likely to blame for that."""
    quarantined_at: int | None = None
    """The step for which that halted it; its weights are those behind `steps_taken` steps."""
    stopped_at: int | None = None
    """The step before which its validation loss had stood still for so long that it stopped early."""
    evaluations: tuple[EvaluationRecord, ...] = ()
    """Validation losses during training."""
    wants_best: bool = False
    """Whether its folder holds the weights of the best of them, where one was good, and not its last ones."""

    def best_step(self) -> int | None:
        """Steps behind the lowest validation loss during training; None where no look found any."""
        return max((found.step for found in self.evaluations if found.best), default=None)

    def warning(self) -> str:
        """What went wrong with it, and the mend; empty where nothing did."""
        mend = "lower its learning_rate or look at its data"
        if self.quarantined_at is not None:
            broke = what_broke(self.last)
            when = f"step {self.quarantined_at}" if self.quarantined_at else "its first step"
            holds = f"as of its last good step, after {counted(self.steps_taken, 'step')}"
            best = self.best_step() if self.wants_best else None
            if not self.steps_taken:
                holds = "untrained"
                if self.first.learning_rate < RISKY_RATE:
                    mend = "look at its data, and at the weights of the base model"
            if best is not None:
                holds = f"as of its lowest validation loss, after {counted(best, 'step')}"
            return f"adapter '{self.name}' was quarantined at {when}: {broke}. {self.folder} holds it {holds}; {mend}"
        if self.skipped:
            undone = f", and took back {len(self.undone)} before such ones" if self.undone else ""
            out = f"left out {counted(len(self.skipped), 'step')}, the first {self.skipped[0]}{undone}"
            return f"adapter '{self.name}' {out}; {mend}"
        return ""

    def summary(self) -> dict[str, object]:
        """For --json."""
        return {
            "name": self.name,
            "folder": str(self.folder),
            "metrics": str(self.metrics_file),
            "steps": self.steps_taken,
            "first_loss": _number(self.first.loss),
            "last_loss": _number(self.last.loss),
            "validation_loss": {when: _number(loss) for when, loss in self.validation.items()},
            "evaluations": [{"step": found.step, "loss": _number(found.loss)} for found in self.evaluations],
            "best_step": self.best_step(),
            "stopped_at_step": self.stopped_at,
            "quarantined_at_step": self.quarantined_at,
            "skipped_steps": list(self.skipped),
            "undone_steps": list(self.undone),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRun:
    """What a run made."""

    output_dir: Path
    timeline_file: Path
    makespan_ms: float
    """From the first start to the last end of any action."""
    tokens: int
    """Trained on; like the makespan, of the resumed part only where a run was resumed."""
    recompute: RecomputeMode | None
    """What the backward made again; None where the run had been finished before."""
    adapters: tuple[TrainedAdapter, ...]
    rankings: tuple[Ranking, ...] = ()
    """Of adapters that learned from the same data."""

    def tokens_per_s(self) -> float:
        """Real tokens over the makespan."""
        return 1000 * self.tokens / self.makespan_ms

    def summary(self) -> dict[str, object]:
        """For --json."""
        return {
            "output_dir": str(self.output_dir),
            "timeline": str(self.timeline_file),
            "makespan_ms": self.makespan_ms,
            "tokens": self.tokens,
            "tokens_per_s": self.tokens_per_s(),
            "recompute": self.recompute,
            "adapters": [adapter.summary() for adapter in self.adapters],
            "rankings": rankings_document(self.rankings),
        }


def trained_run(prepared: Prepared, *, recompute: RecomputeMode | None) -> TrainedRun:
    """Of a run that is through; `recompute` is None where it had been finished before."""
    plan, folder = prepared.plan, prepared.output_dir
    adapters = []
    validation = read_validation(folder)
    for job, looks in zip(plan.jobs, prepared.loaded.evaluation, strict=True):
        path = folder / metrics_name(job.name)
        records = read_metrics(path)
        adapters.append(
            TrainedAdapter(
                name=job.name,
                folder=folder / ADAPTERS / job.name,
                metrics_file=path,
                first=records[0],
                last=records[-1],
                validation=validation.get(job.name, {}),
                steps_taken=steps_kept(records),
                skipped=tuple(record.step for record in records if record.state == "skipped"),
                undone=steps_undone(records),
                quarantined_at=records[-1].step if records[-1].state == "quarantined" else None,
                stopped_at=records[-1].step if records[-1].state == "stopped" else None,
                evaluations=read_evaluations(folder / evaluations_name(job.name)),
                wants_best=looks.load_best_model_at_end,
            )
        )
    timeline = Timeline.load(folder / MEASURED)
    # Evaluations are numbered after the plan's microbatches.
    done = {int(place) for place in timeline.compute()["microbatch"].unique()} & set(range(len(plan.microbatches)))
    return TrainedRun(
        output_dir=folder,
        timeline_file=folder / MEASURED,
        makespan_ms=timeline.makespan_ms(),
        tokens=trained_tokens(
            plan, last_steps={adapter.name: adapter.last.step for adapter in adapters}, microbatches=done
        ),
        recompute=recompute,
        adapters=tuple(adapters),
        rankings=load_rankings(folder / RANKING),
    )


def _number(value: float) -> float | None:
    # JSON knows no nan and no infinity.
    return value if math.isfinite(value) else None
