"""Which transport a run uses: gloo on CPUs, NCCL with a GPU for each worker, staged gloo where workers share GPUs."""

import datetime
import hashlib
import socket

import torch
import torch.distributed as dist

from .gloo import open_gloo
from .nccl import NcclTransport
from .staged import StagedTransport
from .transport import Transport


def open_transport(
    *, num_stages: int, num_replicas: int = 1, device: torch.device | None = None, timeout_s: float = 1800.0
) -> Transport:
    """Join the run that torchrun has started, with messages on `device` (the CPU when absent).

    All workers call it together. Raises PlanError for a wrong number of processes.
    """
    host = open_gloo(num_stages=num_stages, num_replicas=num_replicas, timeout_s=timeout_s)
    if device is None or device.type == "cpu":
        return host
    if not dist.is_nccl_available() or shares_gpu(host, device, num_workers=num_stages * num_replicas):
        return StagedTransport(host, device=device)
    return NcclTransport(
        host,
        num_stages=num_stages,
        num_replicas=num_replicas,
        device=device,
        timeout=datetime.timedelta(seconds=timeout_s),
    )


def shares_gpu(host: Transport, device: torch.device, *, num_workers: int) -> bool:
    """Whether any two workers of the run compute on one GPU; all call it together and hear the same."""
    # By the GPUs' own names: which index a process knows its GPU by depends on what else it may see.
    name = f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}"
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    numbers = torch.zeros(num_workers, dtype=torch.int64)
    numbers[host.worker] = int.from_bytes(digest, "little") >> 1
    host.reduce(numbers, workers=range(num_workers))
    return len(set(numbers.tolist())) < num_workers
