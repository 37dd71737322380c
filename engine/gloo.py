"""Transport over torch.distributed's gloo, of messages on the host: one or several machines."""

import datetime
from collections import deque
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ..planner.errors import PlanError
from ..traces.counted import counted
from .errors import PeerLostError
from .recorder import now_ns
from .transport import Direction, Edge, Transport, edges

PATIENCE = datetime.timedelta(days=7)
"""For a barrier: others may be loading weights, or looking at validation samples, for longer than a message may take. A
worker that has ended is missed at once all the same."""
MAX_OUTSTANDING_SENDS = 4
"""On each edge. Enough that a stage never waits for a receiver one microbatch behind, few enough to bound memory."""


class GlooReceive:
    """A posted irecv with its buffer."""

    def __init__(self, edge: Edge, work: "dist.Work", buffer: Tensor) -> None:
        self._edge = edge
        self._work = work
        self._buffer = buffer

    def wait(self) -> Tensor:
        try:
            self._work.wait()
        except RuntimeError as error:
            raise PeerLostError(f"worker {self._edge.source} is gone ({_brief(error)})") from None
        return self._buffer

    def on_host(self) -> Tensor | None:
        return self._buffer


class GlooTransport:
    """One process's end. Needs an initialised default process group; `open_gloo` makes both."""

    def __init__(self, *, num_stages: int, num_replicas: int, timeout: datetime.timedelta) -> None:
        self._worker = dist.get_rank()
        self._timeout = timeout
        self._channels = {direction: dist.new_group(timeout=timeout, backend="gloo") for direction in Direction}
        everybody = tuple(range(num_stages * num_replicas))
        self._sums: dict[tuple[int, ...], dist.ProcessGroup | None] = {everybody: None}
        if num_replicas > 1:
            # new_group is collective: everyone makes every process group, in one order.
            for stage in range(num_stages):
                peers = tuple(replica * num_stages + stage for replica in range(num_replicas))
                self._sums[peers] = dist.new_group(list(peers), timeout=timeout, backend="gloo")
        self._outstanding: dict[Edge, deque[tuple[dist.Work, Tensor]]] = {}
        self._connect(num_stages=num_stages, num_replicas=num_replicas)

    @property
    def worker(self) -> int:
        return self._worker

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def host(self) -> Transport:
        return self

    def post(self, edge: Edge, num_bytes: int) -> GlooReceive:
        return self.post_into(edge, torch.empty(num_bytes, dtype=torch.uint8))

    def post_into(self, edge: Edge, buffer: Tensor) -> GlooReceive:
        """As `post`, into uint8 memory of the caller's."""
        try:
            work = dist.irecv(buffer, src=edge.source, group=self._channels[edge.direction])
        except RuntimeError as error:
            raise PeerLostError(f"worker {edge.source} is gone ({_brief(error)})") from None
        if work is None:
            raise PeerLostError(f"worker {self._worker} is not part of the run; start it with torchrun")
        return GlooReceive(edge, work, buffer)

    def send(self, edge: Edge, message: Tensor) -> int:
        waiting = self._outstanding.setdefault(edge, deque())
        try:
            while len(waiting) >= MAX_OUTSTANDING_SENDS:
                waiting.popleft()[0].wait()
            work = dist.isend(message, dst=edge.target, group=self._channels[edge.direction])
        except RuntimeError as error:
            raise PeerLostError(f"worker {edge.target} is gone ({_brief(error)})") from None
        if work is not None:
            waiting.append((work, message))
        return now_ns()

    def reduce(self, tensor: Tensor, *, workers: Sequence[int]) -> None:
        try:
            dist.all_reduce(tensor, group=self._sums[tuple(workers)])
        except RuntimeError as error:
            raise PeerLostError(f"one of the workers {tuple(workers)} is gone ({_brief(error)})") from None

    def barrier(self) -> None:
        try:
            dist.barrier()
        except RuntimeError as error:
            raise PeerLostError(f"a worker is gone ({_brief(error)})") from None

    def finish(self) -> None:
        for edge, waiting in self._outstanding.items():
            while waiting:
                try:
                    waiting.popleft()[0].wait()
                except RuntimeError as error:
                    raise PeerLostError(f"worker {edge.target} is gone ({_brief(error)})") from None

    def close(self) -> None:
        dist.destroy_process_group()

    def _connect(self, *, num_stages: int, num_replicas: int) -> None:
        # One message over every edge in a fixed order: a connection that cannot be made fails here, not in the middle.
        for edge in edges(num_stages=num_stages, num_replicas=num_replicas):
            if self._worker == edge.source:
                self.send(edge, torch.zeros(1, dtype=torch.uint8))
            elif self._worker == edge.target:
                self.post(edge, 1).wait()
        self.finish()


def open_gloo(*, num_stages: int, num_replicas: int = 1, timeout_s: float = 1800.0) -> GlooTransport:
    """Join the run that torchrun has started; `timeout_s` is for a message that does not come.

    Raises PlanError for a wrong number of processes.
    """
    timeout = datetime.timedelta(seconds=timeout_s)
    dist.init_process_group("gloo", timeout=max(timeout, PATIENCE))
    check_num_workers(dist.get_world_size(), num_stages=num_stages, num_replicas=num_replicas)
    return GlooTransport(num_stages=num_stages, num_replicas=num_replicas, timeout=timeout)


def check_num_workers(num_started: int, *, num_stages: int, num_replicas: int) -> None:
    """Raise PlanError for a number of processes that is not the plan's."""
    needed = num_stages * num_replicas
    if num_started != needed:
        raise PlanError(
            f"{counted(num_started, 'worker process')} for a plan of {counted(num_stages, 'stage')} x "
            f"{counted(num_replicas, 'replica')}: "
            f"use torchrun --nproc-per-node {needed}"
        )


def _brief(error: RuntimeError) -> str:
    # gloo's messages begin with a source path in brackets and may go on over many lines.
    line = str(error).splitlines()[0]
    return "connection closed" if "closed by peer" in line else line.rpartition("] ")[2].partition(". ")[0]
