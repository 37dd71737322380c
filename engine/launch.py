"""Starts the processes of a run on this machine with torchrun's launcher, and says in one line why they ended."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ..planner.errors import JobError
from .errors import BAD_INPUT, PEER_LOST, STOPPED, EngineError, InterruptedRunError
from .position import position_path, read_position
from .watchdog import LAUNCHER


def launch(module: str, arguments: Sequence[str], *, work_dir: Path, num_workers: int) -> None:
    """Run `num_workers` processes of `python -m module arguments` until all are done.

    They note their positions in `work_dir`. Raises EngineError naming who ended and where, JobError where that was for
    bad input, which the worker has told of, InterruptedRunError when told to stop.
    """
    # One core has no use for more than one thread, and threads that outnumber cores slow each other down.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _num_cores() // num_workers)))
    # A restart on gloo finds its peers only with a store of its own (pytorch issue 135712).
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    _hush_launcher()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_workers,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    # Taken back afterwards: what this process starts otherwise has another parent.
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        raise _failure(error, work_dir) from None
    except (SignalException, KeyboardInterrupt):
        raise InterruptedRunError(f"stopped; {_positions(work_dir, num_workers)}") from None
    finally:
        os.environ.pop(LAUNCHER, None)


def _num_cores() -> int:
    # Those that we may use: a scheduler gives a job some of a machine's.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _hush_launcher() -> None:
    # What torchrun's loggers say in a hundred lines, our message says in one. Each has a level of its own.
    for name in tuple(logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher")):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _failure(error: ChildFailedError, work_dir: Path) -> EngineError | JobError:
    worker, failure = min(error.failures.items(), key=lambda item: (_blame(item[1].exitcode), item[1].timestamp))
    how = f"killed by {signal.Signals(-failure.exitcode).name}" if failure.exitcode < 0 else f"exit {failure.exitcode}"
    where = read_position(position_path(work_dir, worker))
    told = f"pp_rank {worker} ended ({how}) at {where}; all other workers were stopped"
    if failure.exitcode == -signal.SIGKILL:
        told += (
            ". Where nobody killed it, the machine's own memory was full: give it more, lower microbatch_tokens, or "
            "run fewer stages on it"
        )
    if failure.exitcode == BAD_INPUT:
        return JobError(f"{told}; what is wrong with the input stands above")
    return EngineError(told)


def _blame(exit_code: int) -> int:
    # The cause comes first: killed from outside, then failed by itself, then lost a peer, then stopped by the launcher.
    # NCCL aborts a process whose peer is gone.
    if exit_code == -signal.SIGTERM or exit_code == STOPPED:
        return 3
    if exit_code == -signal.SIGABRT:
        return 2
    return 0 if exit_code < 0 else 2 if exit_code == PEER_LOST else 1


def _positions(work_dir: Path, num_workers: int) -> str:
    return "; ".join(
        f"pp_rank {worker} was at {read_position(position_path(work_dir, worker))}" for worker in range(num_workers)
    )
