"""CUDA's multi-process service, so that processes on one GPU run side by side, each on a share of it.

Without it their kernels take turns on the whole GPU: a stage that waits would speed the others up.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_DAEMON = "nvidia-cuda-mps-control"
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True, kw_only=True)
class MpsState:
    """How processes started meanwhile share the GPU."""

    thread_percentage: float | None
    """Share of the GPU's multiprocessors that each may use; None where MPS does not run."""
    why_not: str = ""


@contextmanager
def mps(thread_percentage: float) -> Iterator[MpsState]:
    """Run the service for the processes that are started inside; this one must not have started CUDA.

    Where it cannot run the state says why, and processes take turns.
    """
    if shutil.which(_DAEMON) is None:
        yield MpsState(thread_percentage=None, why_not=f"{_DAEMON} is not installed")
        return
    # Sockets lie there, whose paths must be short.
    with tempfile.TemporaryDirectory(prefix="mps-", dir="/tmp") as folder:
        given = {
            "CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe",
            "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log",
            "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": f"{thread_percentage:g}",
        }
        for name in ("pipe", "log"):
            os.mkdir(f"{folder}/{name}")
        before = {name: os.environ.get(name) for name in (*given, _VISIBLE)}
        os.environ |= given
        try:
            started = subprocess.run([_DAEMON, "-d"], capture_output=True, text=True)
            if started.returncode:
                said = (started.stderr or started.stdout).strip().splitlines()
                why = said[-1] if said else f"exit {started.returncode}"
                yield MpsState(thread_percentage=None, why_not=f"{_DAEMON}: {why}")
                return
            if os.environ.get(_VISIBLE):
                # The service has the GPUs that were visible to it, and its clients count those from 0.
                os.environ[_VISIBLE] = ",".join(str(place) for place, _ in enumerate(os.environ[_VISIBLE].split(",")))
            try:
                yield MpsState(thread_percentage=thread_percentage)
            finally:
                subprocess.run([_DAEMON], input="quit\n", capture_output=True, text=True, timeout=30, check=False)
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})
