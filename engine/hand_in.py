"""What a worker leaves when it has trained: its part of timeline and adapters, and what worker 0 makes of all parts."""

import platform
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from ..traces.counted import counted
from ..traces.ranking import save_rankings
from ..traces.run_folder import MEASURED, RANKING, metrics_name
from ..traces.timeline import Timeline, no_counters
from .base_folder import base_reference
from .collect import collect
from .device_memory import peak_bytes, sharing_processes
from .export import export_adapters, save_part
from .model import whole_linears
from .output import VALIDATION, WORK, evaluations_name
from .prepare import Prepared
from .ranking import make_rankings
from .recorder import Recorder
from .stage import Stage
from .transport import Transport


def hand_in(prepared: Prepared, stage: Stage, recorder: Recorder, transport: Transport) -> None:
    """Write this worker's spans and its stage's matrices, and bring them and its records to worker 0's folder.

    All workers call it together.
    """
    plan, work = prepared.plan, prepared.output_dir / WORK
    spans = f"spans-{transport.worker}.json"
    written = [f"{WORK}/{spans}"]
    if stage.replica == 0:
        save_part(stage.adapters, work / _part(stage.layout.stage))
        written.append(f"{WORK}/{_part(stage.layout.stage)}")
        if stage.layout.is_last:
            noted = [name(job.name) for job in plan.jobs for name in (metrics_name, evaluations_name)] + [VALIDATION]
            written += [name for name in noted if (prepared.output_dir / name).is_file()]
    Timeline.from_spans(
        recorder.spans(origin_ns=0),
        source="measured",
        origin=machine(stage.device),
        num_stages=plan.num_stages,
        num_replicas=plan.num_replicas,
        counters=_peak(stage),
    ).save(work / spans)
    collect(transport, prepared.output_dir, written, num_workers=plan.num_workers())


def _peak(stage: Stage) -> pd.DataFrame:
    # Its peak as the memory of the whole run: a curve nobody kept.
    held = peak_bytes(stage.device, num_processes=sharing_processes())
    if held is None:
        return no_counters()
    held += 0 if stage.graphs is None else stage.graphs.num_bytes()
    return pd.DataFrame({"replica": [stage.replica], "stage": [stage.layout.stage], "ms": [0.0], "bytes": [held]})


def _part(stage: int) -> str:
    return f"adapters-{stage}.safetensors"


def publish(prepared: Prepared, base_folder: Path) -> None:
    """As worker 0, when all have handed in: one timeline, and the adapters in PEFT's format."""
    plan, folder = prepared.plan, prepared.output_dir
    work = folder / WORK
    parts = [Timeline.load(work / f"spans-{worker}.json") for worker in range(plan.num_workers())]
    timeline = join_timelines(parts)
    export_adapters(
        plan.jobs,
        [work / _part(stage) for stage in range(plan.num_stages)],
        folder,
        base_model=base_reference(prepared.loaded.settings.base_model, base_folder),
        linears=whole_linears(base_folder),
    )
    rankings = make_rankings(prepared.loaded, folder)
    if rankings:
        save_rankings(rankings, folder / RANKING)
    # Last: where it is, the run is finished (finished.py).
    timeline.save(folder / MEASURED)


def join_timelines(parts: Sequence[Timeline]) -> Timeline:
    """One Timeline of all workers', starting at 0 ms with the first action of any."""
    frame = pd.concat([part.frame for part in parts], ignore_index=True)
    begin_ms = frame["start_ms"].min()
    frame["start_ms"] -= begin_ms
    frame["end_ms"] -= begin_ms
    first, counters = parts[0], [part.counters for part in parts if len(part.counters)]
    return Timeline.from_frame(
        frame,
        source="measured",
        origin=first.origin,
        num_stages=first.num_stages,
        num_replicas=first.num_replicas,
        counters=pd.concat(counters, ignore_index=True) if counters else None,
    )


def machine(device: torch.device) -> str:
    """For the timeline's origin: GPU, or processor and threads, and the version of torch."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{platform.machine()} CPU, {counted(torch.get_num_threads(), 'thread')} a stage, torch {torch.__version__}"
