"""How much memory the devices of this machine have to give, asked without keeping any of it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from ..planner.gpus import Gpus, workers_on_gpus

_DRIVERS = ("/dev/nvidiactl", "/dev/dxg")
"""One of these is there where a process can reach a GPU: on Linux, and on Linux inside Windows."""


def free_gpus() -> Gpus | None:
    """The GPUs that are visible here with their free bytes; None without any, and where they do not answer.

    Asked in a process of its own, which is gone when this returns: a CUDA context would stay in this one, and takes
    half a GiB.
    """
    if not any(Path(driver).exists() for driver in _DRIVERS):
        return None
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _QUESTION], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return None
    if asked.returncode:
        return None
    free: list[int] = json.loads(asked.stdout)
    return Gpus(free_bytes=tuple(free)) if free else None


def gpus_of_all_machines(device: torch.device) -> Gpus:
    """Those of a run that torchrun has started, machines alike, each GPU with as much free as this process's."""
    free, _ = torch.cuda.mem_get_info(device)
    machines = int(os.environ.get("WORLD_SIZE", "1")) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return Gpus(free_bytes=(free,) * (torch.cuda.device_count() * machines))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBytes:
    """A GPU's memory, and what one process takes of it beside tensors."""

    total: int
    context: int
    """CUDA's context, kernels, buffers of NCCL: what is taken and not the allocator's, shared out evenly."""

    @classmethod
    def of(cls, device: torch.device, *, num_processes: int) -> "DeviceBytes":
        """As it is now, when as many processes as this one, alike, use the GPU and nobody else."""
        free, total = torch.cuda.mem_get_info(device)
        beside = total - free - num_processes * torch.cuda.memory_reserved(device)
        return cls(total=total, context=max(0, beside) // num_processes)


def peak_bytes(device: torch.device, *, num_processes: int) -> int | None:
    """Most that this process's tensors took at once since `forget_peak`, and its context; None on a CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device) + DeviceBytes.of(device, num_processes=num_processes).context


def forget_peak(device: torch.device) -> None:
    """Count the peak from here on; nothing on a CPU, which has none."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def sharing_processes() -> int:
    """Workers on the GPU of this machine that has most, as torchrun has started them."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(workers_on_gpus(local, num_gpus=max(1, torch.cuda.device_count())).values())


_QUESTION = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(json.dumps([torch.cuda.mem_get_info(index)[0] for index in range(count)]))
"""
_TIMEOUT_S = 60
