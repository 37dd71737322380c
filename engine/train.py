"""`loraplex train` from end to end: plan if need be, check everything, start the processes, say what was made."""

import shutil
from collections.abc import Callable
from dataclasses import replace

from ..planner.build_program import rival_schedules
from ..planner.host_memory import check_weights_fit_host, host_bytes
from ..planner.inputs.loaded_jobs import LoadedJobs
from ..planner.job_plan import check_plan_belongs, plan_jobs
from ..planner.memory_decision import check_profile_model
from ..planner.plan_file import load_plan, save_plan
from ..planner.position import continued
from ..traces.costs import CostProfile
from ..traces.memory_costs import RecomputeMode
from ..traces.profiles import load_profile
from ..traces.run_folder import PLAN
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
from .finished import finished_text, forget_end, is_finished
from .fit_check import settled_recompute
from .flash_attention import asked_attention
from .launch import launch
from .loggers import check_loggers
from .output import CHECKPOINTS, WORK
from .prepare import Prepared, check_nothing_lost, load, prepare
from .run_settings import RunSettings
from .trained_run import TrainedRun, trained_run


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
            return trained_run(prepared, recompute=None)
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
    return trained_run(prepared, recompute=recompute)


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
        check_weights_fit_host(
            loaded.settings.base_model,
            num_stages=plan.num_stages,
            num_replicas=plan.num_replicas,
            free_bytes=host_bytes(),
        )
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
