"""One process of `loraplex profile`, started by profile_model: measures, and as worker 0 writes the profile."""

import argparse
import os
from pathlib import Path

from ..planner.inputs.base_model import find_base_model
from ..planner.inputs.load_jobs import load_jobs
from ..planner.inputs.override import Override
from .base_folder import base_model_folder
from .gloo import open_gloo
from .position import PositionFile, position_path
from .profile import measure_profile
from .profile_plan import default_jobs
from .watchdog import start_watchdog


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m loraplex.engine.profile_worker")
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--stages", type=int, required=True)
    parser.add_argument("--microbatch-tokens", type=int, required=True)
    parser.add_argument("--job", type=Path)
    parser.add_argument("--random-weights", action="store_true")
    given = parser.parse_args()
    transport = open_gloo(num_stages=given.stages)
    position = PositionFile(position_path(given.work, transport.worker))
    start_watchdog(lambda: f"worker {transport.worker} at {position.text}")
    position.move("measuring", -1)
    base = find_base_model(given.model, relative_to=Path.cwd(), random_weights=given.random_weights)
    if transport.worker == 0:
        base_model_folder(base, output_dir=given.work)
    transport.barrier()
    folder = base_model_folder(base, output_dir=given.work)
    capacity = given.microbatch_tokens
    override = Override(random_weights=given.random_weights)
    jobs = default_jobs(sequence_len=capacity) if given.job is None else load_jobs(given.job, override=override).jobs
    profile = measure_profile(base, folder, jobs, transport, num_stages=given.stages, capacity_tokens=capacity)
    if transport.worker == 0:
        profile.save(given.output)
    transport.barrier()
    transport.close()


if __name__ == "__main__":
    main()
    # The process group's threads may outlive it.
    os._exit(0)
