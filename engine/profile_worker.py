"""One process of `loraplex profile`, which profile_main starts: measures, and as worker 0 writes the profile."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..planner.inputs.base_model import BaseModel, find_base_model
from ..planner.inputs.load_jobs import load_jobs
from ..planner.inputs.override import Override
from ..planner.jobs import Job
from ..traces.profile_points import points_path, save_points
from .base_folder import base_model_folder
from .connect import open_transport
from .devices import choose_device
from .gpu_profile import GpuRequest, measure_gpu_profile, shallow
from .position import PositionFile, position_path
from .profile import measure_profile
from .profile_conditions import DEFAULT_LORAS, MAX_ADAPTERS
from .profile_plan import default_jobs
from .transport import Transport
from .watchdog import start_watchdog


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m loraplex.engine.profile_main")
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--stages", type=int, required=True)
    parser.add_argument("--microbatch-tokens", type=int, required=True)
    parser.add_argument("--job", type=Path)
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--load-in-4bit", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--command", default="")
    given = parser.parse_args()
    device = choose_device(given.device)
    transport = open_transport(num_stages=given.stages, device=device)
    position = PositionFile(position_path(given.work, transport.worker))
    start_watchdog(lambda: f"worker {transport.worker} at {position.text}")
    position.move("measuring", -1)
    base = find_base_model(
        given.model,
        relative_to=Path.cwd(),
        random_weights=given.random_weights,
        load_in_4bit=given.load_in_4bit,
    )
    held = shallow(base, depth=given.depth) if device.type == "cuda" else base
    if transport.worker == 0:
        base_model_folder(held, output_dir=given.work)
    transport.barrier()
    folder = base_model_folder(held, output_dir=given.work)
    jobs = None
    if given.job is not None:
        jobs = load_jobs(given.job, override=Override(random_weights=given.random_weights)).jobs
    if device.type == "cuda":
        _on_gpu(given, base, folder, transport, device=device, jobs=jobs)
    else:
        jobs = jobs or default_jobs(sequence_len=given.microbatch_tokens)
        profile = measure_profile(
            base, folder, jobs, transport, num_stages=given.stages, capacity_tokens=given.microbatch_tokens
        )
        if transport.worker == 0:
            profile.save(given.output)
    transport.barrier()
    transport.close()


def _on_gpu(
    given: argparse.Namespace,
    base: BaseModel,
    folder: Path,
    transport: Transport,
    *,
    device: torch.device,
    jobs: Sequence[Job] | None,
) -> None:
    loras = DEFAULT_LORAS if jobs is None else tuple(job.lora for job in jobs[:MAX_ADAPTERS])
    request = GpuRequest(
        num_stages=given.stages,
        capacity_tokens=given.microbatch_tokens,
        depth=given.depth,
        loras=loras,
        command=given.command,
        tell=_tell if transport.worker == 0 else (lambda text: None),
    )
    measured = measure_gpu_profile(base, folder, transport, request, device=device)
    if transport.worker == 0:
        save_points(measured.points, points_path(given.output), source=measured.profile.source)
        measured.profile.save(given.output)


def _tell(text: str) -> None:
    # Beside, not in, what the command line prints.
    print(f"loraplex profile: {text}", file=sys.stderr, flush=True)
