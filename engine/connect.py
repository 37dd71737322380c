"""Which transport a run uses: gloo on CPUs; on GPUs copies from one to the other where they can be, or host memory."""

import datetime
import hashlib
import socket
from contextlib import suppress

import torch
import torch.distributed as dist

from ..planner.errors import PlanError
from .environment import asked_by
from .gloo import GlooTransport, open_gloo
from .nccl import NcclTransport
from .peer import PeerTransport
from .peer_memory import ADDRESS_BYTES, GpuMemory, Memory, Signal
from .staged import StagedTransport
from .transport import Transport

TRANSPORT = "LORAPLEX_TRANSPORT"
"""Environment variable that asks for a transport between GPUs."""
_CHOICES = ("staged", "peer", "nccl")
_TRIAL_BYTES = 4096


def asked_transport() -> str | None:
    """The transport between GPUs that the environment asks for, if any. Raises InputError for an unknown one."""
    return asked_by(TRANSPORT, _CHOICES)


def open_transport(
    *, num_stages: int, num_replicas: int = 1, device: torch.device | None = None, timeout_s: float = 1800.0
) -> Transport:
    """Join the run that torchrun has started, with messages on `device` (the CPU when absent).

    All workers call it together. Raises PlanError for a wrong number of processes, or a transport that cannot serve.
    """
    host = open_gloo(num_stages=num_stages, num_replicas=num_replicas, timeout_s=timeout_s)
    if device is None or device.type == "cpu":
        return host
    num_workers, timeout = num_stages * num_replicas, datetime.timedelta(seconds=timeout_s)
    asked = asked_transport()
    if asked == "staged" or (asked is None and num_workers == 1):
        return StagedTransport(host, device=device)
    has_own_gpu = dist.is_nccl_available() and not shares_gpu(host, device, num_workers=num_workers)
    if asked == "nccl" and has_own_gpu:
        return NcclTransport(host, num_stages=num_stages, num_replicas=num_replicas, device=device, timeout=timeout)
    memory = neighbours_memory(host, device, num_workers=num_workers) if has_own_gpu else None
    if memory is not None:
        return PeerTransport(host, memory, num_stages=num_stages, num_replicas=num_replicas, timeout=timeout)
    if asked is None:
        return StagedTransport(host, device=device)
    if not has_own_gpu:
        raise PlanError(
            f"{TRANSPORT}={asked} needs NCCL and a GPU for each worker; leave it out, or start fewer workers"
        )
    raise PlanError(
        f"{TRANSPORT}=peer needs all workers on one machine, each seeing its neighbours' GPUs, and memory that "
        "CUDA can share (no expandable_segments); leave it out"
    )


def shares_gpu(host: Transport, device: torch.device, *, num_workers: int) -> bool:
    """Whether any two workers of the run compute on one GPU; all call it together and hear the same."""
    # By the GPUs' own names: which index a process knows its GPU by depends on what else it may see.
    name = f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}"
    return len(set(_named_by_all(host, name, num_workers=num_workers))) < num_workers


def neighbours_memory(host: GlooTransport, device: torch.device, *, num_workers: int) -> GpuMemory | None:
    """This worker's GPU memory, if all workers are on one machine where each can write into its neighbours'.

    All call it together and hear the same.
    """
    if len(set(_named_by_all(host, socket.gethostname(), num_workers=num_workers))) > 1:
        return None
    memory = None
    # Without CUDA's driver under that name, or without room; who cannot share says so to all, and does not end.
    with suppress(OSError, RuntimeError):
        memory = GpuMemory(device)
    return memory if reaches_neighbours(host, memory, num_workers=num_workers) else None


def reaches_neighbours(host: GlooTransport, memory: Memory | None, *, num_workers: int) -> bool:
    """Whether every worker can write into its neighbours' memory; all call it together and hear the same."""
    # int64, which every backend adds up; all zeros from whoever cannot share at all.
    addresses = torch.zeros(num_workers, 2 * ADDRESS_BYTES, dtype=torch.int64)
    failures = torch.zeros(1, dtype=torch.int64)
    offer = _offer(memory)
    if offer is None:
        failures += 1
    else:
        _, signal, address = offer
        addresses[host.worker] = torch.tensor(list(address + signal.address))
    host.reduce(addresses, workers=range(num_workers))
    for peer in (host.worker - 1, host.worker + 1):
        if memory is not None and 0 <= peer < num_workers:
            told = bytes(addresses[peer].tolist())
            try:
                memory.reach(told[:ADDRESS_BYTES], told[ADDRESS_BYTES:])
            except RuntimeError:
                failures += 1
    # Room and signal live until everybody has opened them.
    host.reduce(failures, workers=range(num_workers))
    return not failures.any()


def _offer(memory: Memory | None) -> tuple[torch.Tensor, Signal, bytes] | None:
    # Room for a neighbour to try, a signal, and the room's address.
    if memory is None:
        return None
    with suppress(RuntimeError):
        room, address = memory.room(_TRIAL_BYTES)
        return room, memory.signal(), address
    return None


def _named_by_all(host: Transport, name: str, *, num_workers: int) -> list[int]:
    # A number for the name that each worker gives.
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    numbers = torch.zeros(num_workers, dtype=torch.int64)
    numbers[host.worker] = int.from_bytes(digest, "little") >> 1
    host.reduce(numbers, workers=range(num_workers))
    return [int(number) for number in numbers.tolist()]
