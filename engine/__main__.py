"""`python -m torch.distributed.run --nproc-per-node STAGES -m loraplex.engine JOB.yaml`: one process of a run.

`loraplex train` makes the plan and starts this on one machine; call it yourself to place processes otherwise.
"""

import argparse
import os
from pathlib import Path

from ..planner.errors import JobError
from ..planner.inputs.override import Override
from ..traces.memory_costs import RECOMPUTE_MODES
from .ending import ends_process
from .live import LiveTable
from .loggers import logger_names
from .run_settings import RunSettings


def main() -> None:
    """Run one worker. Exit code 2: bad input; 1: training cannot go on; 3: a peer was lost; 130: told to stop."""
    with ends_process(alike=True):
        settings = _settings()
        if "RANK" not in os.environ:
            raise JobError(
                f"this is one process of many, which torchrun numbers; say loraplex train {settings.job_file}, or "
                "python -m torch.distributed.run --nproc-per-node STAGES -m loraplex.engine"
            )
        # torch is imported only now: a wrong argument is told at once.
        from .alone import alone_as_first_worker
        from .gloo import check_num_workers
        from .prepare import prepare
        from .worker import run_worker

        prepared = prepare(settings)
        plan = prepared.plan
        started = int(os.environ.get("WORLD_SIZE", "1"))
        check_num_workers(started, num_stages=plan.num_stages, num_replicas=plan.num_replicas)
    with ends_process(), alone_as_first_worker(prepared.output_dir), LiveTable() as table:
        run_worker(settings, prepared, table)


def _settings() -> RunSettings:
    parser = argparse.ArgumentParser(prog="python -m loraplex.engine", description=main.__doc__)
    parser.add_argument("job_file", type=Path, help="a jobs.yaml")
    parser.add_argument("--plan", type=Path, help="its plan; plan.json in the output folder by default")
    parser.add_argument("--output", type=Path, help="output folder; the job file's output_dir by default")
    parser.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="start anew, and remove an earlier run's checkpoints")
    parser.add_argument("--checkpoint-every", type=int, metavar="N", help="microbatches between checkpoints")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--recompute", choices=(*RECOMPUTE_MODES, "auto"), help="the job file's by default")
    parser.add_argument("--random-weights", action="store_true", help="draw the base model's weights")
    parser.add_argument("--config", type=Path, help="a config.json in place of the job file's base_model")
    parser.add_argument("--report-to", action="append", default=[], help="tensorboard or wandb; may be given twice")
    given = parser.parse_args()
    return RunSettings(
        job_file=given.job_file,
        plan_file=given.plan,
        output_dir=given.output,
        resume=given.resume,
        overwrite=given.overwrite,
        checkpoint_every=given.checkpoint_every,
        device=given.device,
        recompute=given.recompute,
        report_to=logger_names(given.report_to),
        override=Override(random_weights=given.random_weights, config_file=given.config),
    )


if __name__ == "__main__":
    main()
