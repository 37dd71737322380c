"""`loraplex train` from end to end: plan if need be, check everything, start the processes, say what was made."""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..planner.build_program import rival_schedules
from ..planner.host_memory import check_weights_fit_host, host_bytes
from ..planner.inputs.loaded_jobs import LoadedJobs
from ..planner.job_plan import check_plan_belongs, plan_jobs
from ..planner.memory_decision import check_profile_model
from ..planner.plan_file import load_plan, save_plan
from ..planner.position import continued
from ..planner.trained import trained_tokens
from ..traces.costs import CostProfile
from ..traces.counted import counted
from ..traces.memory_costs import RecomputeMode
from ..traces.profiles import load_profile
from ..traces.ranking import Ranking, load_rankings, rankings_document
from ..traces.run_folder import MEASURED, PLAN, RANKING, metrics_name
from ..traces.timeline import Timeline
from .alone import alone_in
from .base_check import check_base
from .base_folder import base_model_folder
from .base_identity import base_identity
from .checkpoint import newest_position
from .connect import asked_transport
from .cut import check_can_cut
from .device_memory import free_gpus
from .devices import check_device, resolved_device
from .disk import writing
from .evaluation_records import EvaluationRecord, read_evaluations
from .finished import finished_text, forget_end, is_finished
from .fit_check import settled_recompute
from .flash_attention import asked_attention
from .launch import launch
from .learning_rate import RISKY_RATE
from .loggers import check_loggers
from .metrics import StepRecord, read_metrics, steps_kept, steps_undone
from .output import ADAPTERS, CHECKPOINTS, WORK, evaluations_name, read_validation
from .prepare import Prepared, check_nothing_lost, load, prepare
from .reports import what_broke
from .run_settings import RunSettings


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


def train(
    settings: RunSettings,
    *,
    progress: Callable[[str, float], None] | None = None,
    before_launch: Callable[[], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> TrainedRun:
    """Train all adapters of a job file on this machine, one process per stage and replica.

    A plan is made when none is given. On resume it is that of the run so far; where the job file asks for another
    pipeline or microbatch_tokens than that has, what is left is planned anew for them. Of a run that is finished
    already nothing is touched; what it made is returned. `before_launch` is called when all is checked and the
    processes start, which draw their own bars; `tell` hears where a resumed run goes on. Raises JobError or PlanError
    for bad input before that, EngineError when the run breaks.
    """
    check_device(settings.device)
    asked_transport()
    asked_attention()
    profile = None if settings.profile is None else load_profile(settings.profile)
    loaded = load(settings, progress=progress)
    with alone_in(settings.output_dir or loaded.settings.output_dir):
        return _train(settings, loaded, profile=profile, progress=progress, before_launch=before_launch, tell=tell)


def _train(
    settings: RunSettings,
    loaded: LoadedJobs,
    *,
    profile: CostProfile | None,
    progress: Callable[[str, float], None] | None,
    before_launch: Callable[[], None] | None,
    tell: Callable[[str], None] | None,
) -> TrainedRun:
    if settings.plan_file is None:
        if settings.resume:
            _plan_rest(settings, loaded)
        else:
            _plan(settings, loaded, profile=profile, progress=progress)
    prepared = prepare(settings, loaded=loaded)
    check_loggers(settings.report_to or loaded.settings.report_to)
    if settings.checkpoint_every is not None:
        check_can_cut(prepared.program)
    identity = _check_base(prepared)
    if settings.resume:
        # Here, so that it is told once and before any process starts.
        slot = newest_position(prepared.output_dir, prepared.plan, base=identity)
        finished = is_finished(prepared.output_dir, prepared.plan)
        if tell is not None:
            tell(
                finished_text(prepared.output_dir, settings.job_file) if finished else _where_it_goes_on(prepared, slot)
            )
        if finished:
            return _result(prepared, recompute=None)
    recompute = _recompute(settings, prepared, profile=profile)
    forget_end(prepared.output_dir)
    if settings.plan_file is not None:
        prepared.output_dir.mkdir(parents=True, exist_ok=True)
        save_plan(prepared.plan, prepared.output_dir / PLAN)
    settings = replace(settings, plan_file=None, output_dir=prepared.output_dir, recompute=recompute)
    if before_launch is not None:
        before_launch()
    work_dir = prepared.output_dir / WORK
    try:
        launch("loraplex.engine", settings.arguments(), work_dir=work_dir, num_workers=prepared.plan.num_workers())
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)
    return _result(prepared, recompute=recompute)


def _where_it_goes_on(prepared: Prepared, slot: int | None) -> str:
    if slot is None:
        return f"no whole checkpoint in {prepared.output_dir / CHECKPOINTS}: training from the beginning"
    return f"going on behind slot {slot + 1} of {prepared.plan.num_slots()}"


def _check_base(prepared: Prepared) -> str:
    # Its identity. Written or downloaded here, where no other process waits for it; workers find it done.
    settings = prepared.loaded.settings
    with writing(prepared.output_dir, then="start again"):
        folder = base_model_folder(settings.base_model, output_dir=prepared.output_dir)
    check_base(folder, settings.base_model)
    return base_identity(folder, settings.base_model, seed=settings.seed)


def _recompute(settings: RunSettings, prepared: Prepared, *, profile: CostProfile | None) -> RecomputeMode:
    # Here, so that what cannot fit is told before any process starts.
    plan, loaded = prepared.plan, prepared.loaded
    on_gpu = resolved_device(settings.device) == "cuda"
    if not on_gpu:
        check_weights_fit_host(loaded.settings.base_model, num_replicas=plan.num_replicas, free_bytes=host_bytes())
    return settled_recompute(
        plan,
        loaded,
        asked=settings.recompute or loaded.settings.recompute,
        gpus=free_gpus() if on_gpu else None,
        profile=profile,
    )


def _plan(
    settings: RunSettings,
    loaded: LoadedJobs,
    *,
    profile: CostProfile | None,
    progress: Callable[[str, float], None] | None,
) -> None:
    folder = settings.output_dir or loaded.settings.output_dir
    # Before the earlier run's plan is gone.
    check_nothing_lost(settings, folder)
    if profile is not None:
        # Before the time that planning takes.
        check_profile_model(profile, loaded.settings.base_model)
    plan = plan_jobs(loaded, profile=profile, progress=progress)
    folder.mkdir(parents=True, exist_ok=True)
    forget_end(folder)
    save_plan(plan, folder / PLAN)


def _plan_rest(settings: RunSettings, loaded: LoadedJobs) -> None:
    wanted = loaded.settings
    folder = settings.output_dir or wanted.output_dir
    if not (folder / PLAN).is_file():
        return
    plan = load_plan(folder / PLAN)
    # A plan made under a profile names the one of the job file's rival schedules that was the faster.
    schedule = plan.schedule if plan.schedule in rival_schedules(wanted.schedule) else wanted.schedule
    changed = replace(
        plan,
        num_stages=wanted.num_stages,
        num_replicas=wanted.num_replicas,
        microbatch_tokens=wanted.microbatch_tokens,
        schedule=schedule,
    )
    if changed == plan or is_finished(folder, plan):
        return
    check_plan_belongs(plan, loaded, path=folder / PLAN, resumed=True)
    slot = newest_position(folder, plan)
    rest = continued(
        plan,
        slot=-1 if slot is None else slot,
        num_stages=wanted.num_stages,
        num_replicas=wanted.num_replicas,
        microbatch_tokens=wanted.microbatch_tokens,
        schedule=schedule,
    )
    save_plan(rest, folder / PLAN)


def _result(prepared: Prepared, *, recompute: RecomputeMode | None) -> TrainedRun:
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
