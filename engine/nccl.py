"""Transport over NCCL: one GPU for each worker, on one machine or several.

Each directed edge has a communicator of its own. A communicator runs what it is given in order, on one stream, and a
receive occupies it until its message has come. A worker in the middle of the pipeline posts the receive of the next
activation before it sends the one at hand; were both on one communicator, the send would wait for that receive, hence
for the stage before, which may itself wait for our gradient: a deadlock that no order of sends and receives in the
Program causes. With a communicator that carries one edge only, what is ahead of a message is nothing but earlier
messages of the same edge, which the Program's check for deadlocks already counts. Grouped calls (batch_isend_irecv)
would not do: a receive posted ahead and a send that comes later belong to no common moment.

Nothing here makes the host wait for the GPU, except a fifth message on an edge of which the first has not left.
"""

import datetime
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from .gloo import MAX_OUTSTANDING_SENDS, GlooTransport
from .lifeline import Lifeline, OnLost, end_process
from .nccl_sums import NcclSums, communicator
from .over_host import OverHost
from .transport import Edge, edges


class NcclReceive:
    """A receive that occupies its edge's stream until the message has come."""

    def __init__(self, work: "dist.Work", buffer: Tensor) -> None:
        self._work = work
        self._buffer = buffer

    def wait(self) -> Tensor:
        # Makes the current stream wait, not the host.
        self._work.wait()
        self._buffer.record_stream(torch.cuda.current_stream(self._buffer.device))
        return self._buffer

    def on_host(self) -> Tensor | None:
        return None


@dataclass(slots=True)
class _Way:
    # One edge's communicator as its sender knows it: `after` is the stream that waits for each message to leave.
    process_group: "dist.ProcessGroup"
    after: torch.cuda.Stream
    under_way: deque[tuple[torch.cuda.Event, Tensor]]


class NcclTransport(OverHost):
    """One worker's end; all workers make theirs together, in the same order."""

    def __init__(
        self,
        host: GlooTransport,
        *,
        num_stages: int,
        num_replicas: int,
        device: torch.device,
        timeout: datetime.timedelta,
        on_lost: OnLost = end_process,
    ) -> None:
        super().__init__(host, device=device)
        # Nothing ever runs on it: what is made there may be filled at once.
        self._idle = torch.cuda.Stream(device)
        self._receiving: dict[Edge, dist.ProcessGroup] = {}
        self._sending: dict[Edge, _Way] = {}
        for edge in edges(num_stages=num_stages, num_replicas=num_replicas):
            process_group = communicator((edge.source, edge.target), timeout)
            if host.worker == edge.source:
                self._sending[edge] = _Way(process_group, torch.cuda.Stream(device), deque())
            elif host.worker == edge.target:
                self._receiving[edge] = process_group
        self._sums = NcclSums(host, num_stages=num_stages, num_replicas=num_replicas, device=device, timeout=timeout)
        self._lifeline = Lifeline(on_lost=on_lost)
        self._connect(num_stages=num_stages, num_replicas=num_replicas)

    def post(self, edge: Edge, num_bytes: int) -> NcclReceive:
        # NCCL's stream waits for the current one when it is called: here for one that has nothing to do.
        with torch.cuda.stream(self._idle):
            buffer = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
            work = dist.irecv(buffer, src=edge.source, group=self._receiving[edge])
        assert work is not None
        return NcclReceive(work, buffer)

    def send(self, edge: Edge, message: Tensor) -> torch.cuda.Event:
        way = self._sending[edge]
        # A message's memory is ours to keep until it has left; what has left is let go here.
        while way.under_way and (len(way.under_way) >= MAX_OUTSTANDING_SENDS or way.under_way[0][0].query()):
            way.under_way.popleft()[0].synchronize()
        work = dist.isend(message, dst=edge.target, group=way.process_group)
        assert work is not None
        left = torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(way.after):
            work.wait()
            left.record(way.after)
        way.under_way.append((left, message))
        return left

    def reduce(self, tensor: Tensor, *, workers: Sequence[int]) -> None:
        self._sums.add_up(tensor, workers=workers)

    def finish(self) -> None:
        for way in self._sending.values():
            while way.under_way:
                way.under_way.popleft()[0].synchronize()
        self._host.finish()

    def close(self) -> None:
        torch.cuda.synchronize(self._device)
        self._lifeline.leave()
        self._host.close()

    def _connect(self, *, num_stages: int, num_replicas: int) -> None:
        # NCCL connects at the first use: over every edge in a fixed order, so that nobody waits in a circle.
        for edge in edges(num_stages=num_stages, num_replicas=num_replicas):
            if edge in self._sending:
                self.send(edge, torch.zeros(1, dtype=torch.uint8, device=self._device))
                self.finish()
            elif edge in self._receiving:
                self.post(edge, 1).wait()
                torch.cuda.synchronize(self._device)
        torch.cuda.synchronize(self._device)
        self.barrier()
