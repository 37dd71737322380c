"""Every transport, with a function run by each of its workers: threads over rendezvous, processes over the others."""

import datetime
import multiprocessing
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest
import torch
from torch import Tensor

from loraplex.engine.connect import neighbours_memory, reaches_neighbours, shares_gpu
from loraplex.engine.devices import choose_device
from loraplex.engine.errors import PeerLostError
from loraplex.engine.gloo import GlooTransport, open_gloo
from loraplex.engine.nccl import NcclTransport
from loraplex.engine.peer import PeerTransport
from loraplex.engine.peer_memory import Memory
from loraplex.engine.rendezvous import RendezvousTransport, Switchboard
from loraplex.engine.staged import StagedTransport
from loraplex.engine.transport import Direction, Edge, Transport
from loraplex.tests.engine.host_memory import HostMemory
from loraplex.tests.engine.host_wire import HostWire

Work = Callable[[Transport], object]
Run = Callable[..., list[object]]
"""(what each worker does, number of stages, number of replicas) -> what each returned, or the error it raised."""


def down(source: int) -> Edge:
    return Edge(source=source, target=source + 1, direction=Direction.DOWN)


def up(source: int) -> Edge:
    return Edge(source=source, target=source - 1, direction=Direction.UP)


def message(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8)


def run_threads(work: Work, *, num_stages: int = 2, num_replicas: int = 1) -> list[object]:
    num_workers = num_stages * num_replicas
    board = Switchboard(num_workers, timeout_s=20)
    results: list[object] = [None] * num_workers

    def body(worker: int) -> None:
        try:
            results[worker] = work(RendezvousTransport(board, worker))
        except Exception as error:
            results[worker] = error
        board.leave(worker, "it ended")

    threads = [threading.Thread(target=body, args=(worker,)) for worker in range(num_workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class Connection(Protocol):
    """Makes a worker's transport inside its process; `on_lost` ends that process where no call can raise."""

    def __call__(
        self, *, num_stages: int, num_replicas: int, on_lost: Callable[[PeerLostError], None]
    ) -> Transport: ...


def run_processes(work: Work, *, connect: Connection, num_stages: int, num_replicas: int) -> list[object]:
    """Forked processes, so that `work` may be any function of a test. Who returns "gone" goes without a word."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    num_workers = num_stages * num_replicas
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(num_workers)]

    def body(worker: int) -> None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"RANK": str(worker), "WORLD_SIZE": str(num_workers)}
        os.environ |= {"LOCAL_RANK": str(worker), "LOCAL_WORLD_SIZE": str(num_workers)}
        torch.set_num_threads(1)

        def end(result: object) -> None:
            pipes[worker][1].send(result)
            os._exit(0)

        try:
            transport = connect(num_stages=num_stages, num_replicas=num_replicas, on_lost=end)
            result: object = work(transport)
            if result == "gone" or isinstance(result, Exception):
                end(result)
            transport.close()
        except Exception as error:
            result = error
        end(result)

    processes = [context.Process(target=body, args=(worker,)) for worker in range(num_workers)]
    for process in processes:
        process.start()
    results: list[object] = []
    for (receiver, _), process in zip(pipes, processes, strict=True):
        results.append(receiver.recv() if receiver.poll(60) else None)
        process.join(10)
    return results


def run_gloo(work: Work, *, num_stages: int = 2, num_replicas: int = 1) -> list[object]:
    def connect(*, num_stages: int, num_replicas: int, on_lost: object) -> Transport:
        return open_gloo(num_stages=num_stages, num_replicas=num_replicas, timeout_s=20)

    return run_processes(work, connect=connect, num_stages=num_stages, num_replicas=num_replicas)


def run_staged(work: Work, *, num_stages: int = 2, num_replicas: int = 1) -> list[object]:
    """On a CPU: the threads and the order, without pinned memory."""

    def connect(*, num_stages: int, num_replicas: int, on_lost: object) -> Transport:
        host = open_gloo(num_stages=num_stages, num_replicas=num_replicas, timeout_s=20)
        return StagedTransport(host, device=torch.device("cpu"))

    return run_processes(work, connect=connect, num_stages=num_stages, num_replicas=num_replicas)


def run_staged_gpu(work: Work, *, num_stages: int = 2, num_replicas: int = 1) -> list[object]:
    """All workers on GPU 0."""
    cuda_has_not_started()

    def connect(*, num_stages: int, num_replicas: int, on_lost: object) -> Transport:
        device = torch.device("cuda", 0)
        torch.cuda.set_device(device)
        host = open_gloo(num_stages=num_stages, num_replicas=num_replicas, timeout_s=20)
        assert shares_gpu(host, device, num_workers=num_stages * num_replicas)
        return StagedTransport(host, device=device)

    return run_processes(work, connect=connect, num_stages=num_stages, num_replicas=num_replicas)


def run_peer(work: Work, *, num_stages: int = 2, num_replicas: int = 1) -> list[object]:
    """On a CPU: offers, notices and rooms, with slow copies between files that two processes map."""
    folder = Path(tempfile.mkdtemp(prefix="peer-", dir="/tmp"))

    def connect(*, num_stages: int, num_replicas: int, on_lost: Callable[[PeerLostError], None]) -> Transport:
        host = open_gloo(num_stages=num_stages, num_replicas=num_replicas, timeout_s=20)
        memory: Memory = HostMemory(folder, host.worker)
        assert reaches_neighbours(host, memory, num_workers=num_stages * num_replicas)
        return peer_transport(host, memory, num_stages=num_stages, num_replicas=num_replicas, on_lost=on_lost)

    try:
        return run_processes(work, connect=connect, num_stages=num_stages, num_replicas=num_replicas)
    finally:
        shutil.rmtree(folder)


def run_peer_gpu(work: Work, *, num_stages: int = 2, num_replicas: int = 1) -> list[object]:
    """A GPU for each worker."""
    num_workers = num_stages * num_replicas
    needs_gpus(num_workers)

    def connect(*, num_stages: int, num_replicas: int, on_lost: Callable[[PeerLostError], None]) -> Transport:
        device = choose_device("cuda")
        host = open_gloo(num_stages=num_stages, num_replicas=num_replicas, timeout_s=20)
        memory = neighbours_memory(host, device, num_workers=num_workers)
        assert memory is not None
        return peer_transport(host, memory, num_stages=num_stages, num_replicas=num_replicas, on_lost=on_lost)

    return run_processes(work, connect=connect, num_stages=num_stages, num_replicas=num_replicas)


def peer_transport(
    host: GlooTransport,
    memory: Memory,
    *,
    num_stages: int,
    num_replicas: int,
    on_lost: Callable[[PeerLostError], None],
) -> Transport:
    return PeerTransport(
        host,
        memory,
        num_stages=num_stages,
        num_replicas=num_replicas,
        timeout=datetime.timedelta(seconds=20),
        on_lost=on_lost,
    )


def run_nccl_host(
    work: Work, *, num_stages: int = 2, num_replicas: int = 1, compute_s: float = 0.001, launch_s: float = 0.0
) -> list[object]:
    """On a CPU: who launches what and when, with threads that meet over gloo in place of NCCL's kernels."""

    def connect(*, num_stages: int, num_replicas: int, on_lost: Callable[[PeerLostError], None]) -> Transport:
        host = open_gloo(num_stages=num_stages, num_replicas=num_replicas, timeout_s=20)
        return NcclTransport(
            host,
            num_stages=num_stages,
            num_replicas=num_replicas,
            device=host.device,
            timeout=datetime.timedelta(seconds=20),
            on_lost=on_lost,
            wire=HostWire(compute_s=compute_s, launch_s=launch_s),
        )

    return run_processes(work, connect=connect, num_stages=num_stages, num_replicas=num_replicas)


def run_nccl(work: Work, *, num_stages: int = 2, num_replicas: int = 1) -> list[object]:
    """A GPU for each worker."""
    num_workers = num_stages * num_replicas
    needs_gpus(num_workers)

    def connect(*, num_stages: int, num_replicas: int, on_lost: Callable[[PeerLostError], None]) -> Transport:
        device = choose_device("cuda")
        host = open_gloo(num_stages=num_stages, num_replicas=num_replicas, timeout_s=20)
        assert not shares_gpu(host, device, num_workers=num_workers)
        return NcclTransport(
            host,
            num_stages=num_stages,
            num_replicas=num_replicas,
            device=device,
            timeout=datetime.timedelta(seconds=60),
            on_lost=on_lost,
        )

    return run_processes(work, connect=connect, num_stages=num_stages, num_replicas=num_replicas)


def needs_gpus(count: int) -> None:
    cuda_has_not_started()
    if torch.cuda.device_count() < count:
        pytest.skip(f"{count} workers need as many GPUs; here are {torch.cuda.device_count()}")


def cuda_has_not_started() -> None:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        pytest.fail("CUDA has started in this process, so its forks cannot use it; run this file alone")
