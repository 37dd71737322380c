"""One process of a run: its stage, its part of the Program, its share of the output."""

import gc
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from ..planner.position import positions
from ..planner.program import Program
from ..traces.memory_costs import RecomputeMode, asked_recompute
from .base_folder import base_model_folder
from .base_identity import base_identity
from .checkpoint import CheckpointWriter, Restored, forget_checkpoints, forget_unfinished, newest_checkpoint
from .clock import clock_offset_ns
from .collect import check_shared
from .connect import open_transport
from .cut import check_can_cut, copies, cut_points
from .device_memory import gpus_of_all_machines
from .devices import choose_device
from .disk import writing
from .evaluations import Evaluations, load_best
from .execute import Executor
from .finished import finished_text, forget_end, is_finished
from .fit_check import agreed_recompute, settled_recompute
from .hand_in import hand_in, publish
from .init_adapter import start_from
from .interleave import Interleaved, interleave
from .itinerary import itinerary
from .loggers import Logger, open_loggers
from .mailbox import Sums
from .output import VALIDATION, WORK, note_validation
from .packer import Packer
from .position import PositionFile, position_path
from .prepare import Prepared
from .recorder import Recorder
from .records import Listener, Records
from .run_settings import RunSettings
from .stage import Stage, make_stage
from .transport import Transport
from .validate import Validation
from .warm_up import warm_up
from .watchdog import start_watchdog
from .weight_source import WeightSource


def run_worker(settings: RunSettings, prepared: Prepared, listener: Listener) -> None:
    """Train this process's stage of the plan; torchrun's variables say which it is.

    Raises JobError, PlanError or EngineError.
    """
    if settings.checkpoint_every is not None:
        check_can_cut(prepared.program)
    plan = prepared.plan
    device = choose_device(settings.device)
    transport = open_transport(num_stages=plan.num_stages, num_replicas=plan.num_replicas, device=device)
    replica, index = divmod(transport.worker, plan.num_stages)
    position = PositionFile(position_path(prepared.output_dir / WORK, transport.worker))
    start_watchdog(lambda: f"pp_rank {index} at {position.text}")
    if settings.checkpoint_every is not None or settings.resume:
        check_shared(transport, prepared.output_dir, num_workers=plan.num_workers())
    if _has_ended(settings, prepared, transport):
        return
    # Before hours of other things: whoever is not logged in hears of it at once.
    loggers = _loggers(settings, prepared) if (replica, index) == (0, plan.num_stages - 1) else ()
    folder = _base_folder(prepared, transport)
    position.move("loading weights", -1)
    weights = _weights(prepared, position, listener if transport.worker == 0 else None)
    stage = make_stage(
        folder,
        plan.jobs,
        stage=index,
        num_stages=plan.num_stages,
        replica=replica,
        weights=weights,
        device=device,
        recompute=_recompute(settings, prepared, transport),
    )
    if device.type == "cuda":
        position.move("loading kernels", -1)
        warm_up(stage, plan, prepared.loaded)
    start_from(stage.adapters, prepared.loaded.init_adapters)
    position.move("reading the checkpoint" if settings.resume else "building adapters", -1)
    base = base_identity(folder, prepared.loaded.settings.base_model, seed=prepared.loaded.settings.seed)
    restored = _restore(settings, prepared, stage, transport, base=base)
    recorder = Recorder(stage=index, replica=replica, device=device)
    recorder.clock_offset_ns = clock_offset_ns(transport, num_workers=plan.num_workers())
    validation = Validation.of(plan, prepared.loaded) if replica == 0 else None
    position.move("validation before training", -1)
    if validation is not None and restored is None:
        _note(prepared, "before", validation.losses(stage, transport))
    _train(
        settings,
        prepared,
        stage,
        transport,
        recorder,
        base=base,
        restored=restored,
        validation=validation,
        position=position,
        listener=listener,
        loggers=loggers,
    )
    position.move("validation", -1)
    if validation is not None:
        _note(prepared, "after", validation.losses(stage, transport))
    # Other replicas wait here, not for a message.
    transport.barrier()
    position.move("the export", -1)
    with writing(prepared.output_dir):
        hand_in(prepared, stage, recorder, transport)
        if transport.worker == 0:
            publish(prepared, folder)
    transport.barrier()
    transport.close()
    shutil.rmtree(prepared.output_dir / WORK, ignore_errors=True)


def _has_ended(settings: RunSettings, prepared: Prepared, transport: Transport) -> bool:
    # Whether a resumed run was finished before. All find the same: none changes anything before all have looked.
    ended = settings.resume and is_finished(prepared.output_dir, prepared.plan)
    transport.barrier()
    if not ended:
        if transport.worker == 0:
            forget_end(prepared.output_dir)
        return False
    if transport.worker == 0:
        print(f"loraplex: {finished_text(prepared.output_dir, settings.job_file)}", file=sys.stderr)
        # The position files are in it.
        shutil.rmtree(prepared.output_dir / WORK, ignore_errors=True)
    transport.close()
    return True


def _recompute(settings: RunSettings, prepared: Prepared, transport: Transport) -> RecomputeMode:
    # `loraplex train` has settled it; workers that torchrun starts on machines of their own agree on it.
    choice = settings.recompute or prepared.loaded.settings.recompute
    if choice != "auto" or transport.device.type != "cuda":
        return asked_recompute(choice) or "none"
    gpus = gpus_of_all_machines(transport.device)
    mode = settled_recompute(prepared.plan, prepared.loaded, asked=choice, gpus=gpus)
    return agreed_recompute(mode, transport, num_workers=prepared.plan.num_workers())


def _base_folder(prepared: Prepared, transport: Transport) -> Path:
    # The first worker may have to write or download it, then the first of every machine; the others find it done.
    model, found = prepared.loaded.settings.base_model, None
    is_first_here = int(os.environ.get("LOCAL_RANK", str(transport.worker))) == 0
    for is_my_turn in (transport.worker == 0, is_first_here, True):
        if is_my_turn and found is None:
            with writing(prepared.output_dir):
                found = base_model_folder(model, output_dir=prepared.output_dir)
        transport.barrier()
    assert found is not None
    return found


def _weights(prepared: Prepared, position: PositionFile, listener: Listener | None) -> WeightSource:
    def report(number: int, num_files: int) -> None:
        position.move(f"loading weights {number} of {num_files}", -1)
        if listener is not None:
            listener.loading(number, num_files)

    settings = prepared.loaded.settings
    return WeightSource.of(settings.base_model, seed=settings.seed, report=report)


def _restore(
    settings: RunSettings, prepared: Prepared, stage: Stage, transport: Transport, *, base: str
) -> Restored | None:
    if not settings.resume:
        if transport.worker == 0:
            forget_checkpoints(prepared.output_dir)
            (prepared.output_dir / VALIDATION).unlink(missing_ok=True)
        transport.barrier()
        return None
    restored = newest_checkpoint(prepared.output_dir, prepared.plan, base=base)
    if restored is not None:
        restored.put_into(stage.adapters, replica=stage.replica, num_replicas=prepared.plan.num_replicas)
    if transport.worker == 0:
        forget_unfinished(prepared.output_dir)
    # Nobody writes a new checkpoint before everybody has read the old one.
    transport.barrier()
    return restored


def _train(
    settings: RunSettings,
    prepared: Prepared,
    stage: Stage,
    transport: Transport,
    recorder: Recorder,
    *,
    base: str,
    restored: Restored | None,
    validation: Validation | None,
    position: PositionFile,
    listener: Listener,
    loggers: Sequence[Logger],
) -> None:
    plan, index, after = prepared.plan, stage.layout.stage, -1 if restored is None else restored.after
    program = prepared.program if restored is None else restored.rest_of(prepared.program)
    sums = Sums()
    if restored is not None:
        sums = restored.sums(replica=stage.replica, num_replicas=plan.num_replicas)
    records = _records(prepared, stage, listener, loggers)
    looks = _interleaved(program, prepared, validation)
    evaluations = _evaluations(looks, prepared, stage, validation, records)
    checkpoints = CheckpointWriter(
        prepared.output_dir,
        stage=index,
        num_stages=plan.num_stages,
        positions=() if settings.checkpoint_every is None else positions(plan),
        base=base,
        replica=stage.replica,
        num_replicas=plan.num_replicas,
    )
    due = {}
    if settings.checkpoint_every is not None:
        cuts = cut_points(plan.num_slots(), every=settings.checkpoint_every, after=after)
        due = copies(looks.program, plan, stage=index, replica=stage.replica, cuts=cuts)

    def checkpoint(place: int) -> None:
        if place in due:
            # The metrics must hold every step that the checkpoint holds.
            executor.flush()
            checkpoints.copy(due[place], stage.adapters, sums)

    executor = Executor(
        stage,
        looks.plan,
        Packer(plan.jobs, prepared.loaded, device=stage.device, buckets=stage.buckets),
        transport,
        recorder=recorder,
        sums=sums,
        on_nonfinite=prepared.loaded.settings.on_nonfinite,
        on_step=None if records is None else records.step,
        evaluations=evaluations,
        before_leg=lambda leg: position.move(leg.word, leg.action.microbatch),
        after_leg=checkpoint,
    )
    # Of what loading left behind: from here on only what is new is looked at.
    gc.collect()
    transport.barrier()
    executor.run(itinerary(looks.program, looks.plan, stage=index, replica=stage.replica))
    load_best(
        stage.adapters,
        prepared.loaded.evaluation,
        lambda verdict: transport.host.reduce(verdict, workers=range(plan.num_workers())),
        evaluations=evaluations,
        is_last=stage.layout.is_last,
    )
    if records is not None:
        records.close()


def _interleaved(program: Program, prepared: Prepared, validation: Validation | None) -> Interleaved:
    if validation is None:
        return Interleaved(program=program, plan=prepared.plan, by_microbatch={})
    settings = prepared.loaded.evaluation
    return interleave(program, prepared.plan, held_out=validation.held_out(), settings=settings)


def _evaluations(
    looks: Interleaved, prepared: Prepared, stage: Stage, validation: Validation | None, records: Records | None
) -> Evaluations | None:
    if validation is None:
        return None
    return Evaluations(
        validation.packer(stage.device),
        looks.by_microbatch,
        prepared.loaded.evaluation,
        hear=None if records is None else records.evaluation,
    )


def _note(prepared: Prepared, when: str, losses: Mapping[str, float]) -> None:
    # Only the last stage has any.
    if losses:
        note_validation(prepared.output_dir, when, losses)


def _loggers(settings: RunSettings, prepared: Prepared) -> tuple[Logger, ...]:
    jobs = prepared.plan.jobs
    return open_loggers(
        settings.report_to or prepared.loaded.settings.report_to,
        folder=prepared.output_dir,
        settings={job.name: asdict(job.lora) | asdict(job.optimizer) | {"seed": job.seed} for job in jobs},
        resumed=settings.resume,
    )


def _records(prepared: Prepared, stage: Stage, listener: Listener, loggers: Sequence[Logger]) -> Records | None:
    if stage.replica or not stage.layout.is_last:
        return None
    return Records(
        prepared.output_dir,
        listener=listener,
        loggers=loggers,
        num_steps={job.name: len(job.global_batches) for job in prepared.plan.jobs},
        steps_done={adapter.job.name: adapter.version for adapter in stage.adapters},
    )
