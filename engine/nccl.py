"""Transport over NCCL: one GPU for each worker, on one machine or several.

Each half of an NCCL transfer is a kernel that runs until the other half does its share. A host that loads a kernel
may have to wait for all that runs on its GPU, and may hold up every other thread of its process meanwhile. Receives
posted ahead have therefore hung: each of two hosts was loading, behind a receive that only the other could have ended
(docs/log.md). So nothing is launched ahead here. A message is computed and its room is made, and both are known on
the host, before a thread at each end launches its half; the next one of these two workers begins when both halves
have ended (nccl_pair.py).

Why no circle of waits can close. NCCL cannot launch two halves at one moment, so for a while one half runs alone and
a host must end it. Take the worst: a host that loads does nothing else, in no thread, until every kernel on its GPU
has ended. Say a half runs alone on worker A, and its neighbour B cannot launch the other since B loads. All that B
needs of A was said before A launched. B then waits for what runs on its own GPU: work that ends by itself, transfers
of which both halves are launched, or another half that is alone. That is none of A and B, who have one transfer at a
time, of which B's half is missing. So it belongs to B and its other neighbour C, further along the path that the
workers form, and of C the same is true. The path has an end, and who stands there has no further neighbour to wait
for. A transfer that has been agreed on, but of which no half is launched, keeps no GPU busy; whoever holds it up
loads, and the same walk begins there. Computing a message needs only receives that were launched before, as `wait`
returns no earlier. A worker in a sum over replicas launches nothing else until that has ended (nccl_sums.py), so no
worker that loads has one running.

What remains. It is taken for granted that a launch waits for no other host once both directions of a pair have been
used, which is done at the start, and that kernels find room beside each other on a GPU or take turns; NCCL promises
neither. The walk ends on paths, not in a ring of workers. A half alone is short, not gone: while one host loads, its
neighbour's GPU may spin on up to MAX_CTAS thread blocks. A worker lost in that time leaves a half that never ends,
and the lifeline ends the process. Both directions share one turn, so a link that could carry both at once carries
one, and each message costs four notes between hosts. Two GPUs of one machine have trained over it; several machines,
or more than two stages, have not.
"""

import datetime
from collections.abc import Sequence

import torch
from torch import Tensor

from .gloo import GlooTransport
from .lifeline import Lifeline, OnLost, end_process
from .nccl_end import NOTE, PairEnd, Room, Shared
from .nccl_pair import LowerEnd, UpperEnd
from .nccl_sums import NcclSums
from .nccl_wire import NcclWire, Wire
from .notes import Notes
from .over_host import OverHost
from .recorder import Later
from .transport import Edge, edges

_ALWAYS = datetime.timedelta(days=3650)
"""For notes, which a thread awaits as long as the run lasts; who waits for a message has a time of its own."""


class NcclReceive:
    """A message whose room has been made."""

    def __init__(self, end: PairEnd, room: Room) -> None:
        self._end = end
        self._room = room

    def wait(self) -> Tensor:
        return self._end.wait(self._room)

    def on_host(self) -> Tensor | None:
        return None


class NcclTransport(OverHost):
    """One worker's end; all workers make theirs together, in the same order. `wire` is NCCL's unless given."""

    def __init__(
        self,
        host: GlooTransport,
        *,
        num_stages: int,
        num_replicas: int,
        device: torch.device,
        timeout: datetime.timedelta,
        on_lost: OnLost = end_process,
        wire: Wire | None = None,
    ) -> None:
        super().__init__(host, device=device)
        self._wire = wire or NcclWire(
            host.worker, num_stages=num_stages, num_replicas=num_replicas, device=device, timeout=timeout
        )
        notes = Notes(num_bytes=NOTE.size, timeout=_ALWAYS)
        self._sums = NcclSums(host, num_stages=num_stages, num_replicas=num_replicas, device=device, timeout=timeout)
        self._lifeline = Lifeline(on_lost=on_lost)
        shared = Shared(timeout_s=timeout.total_seconds())
        self._ends: dict[int, PairEnd] = {}
        for edge in edges(num_stages=num_stages, num_replicas=num_replicas):
            if self.worker in (edge.source, edge.target):
                self._connect(edge)
        self.barrier()
        stage = self.worker % num_stages
        if stage > 0:
            self._ends[self.worker - 1] = UpperEnd(self.worker - 1, wire=self._wire, notes=notes, shared=shared)
        if stage + 1 < num_stages:
            self._ends[self.worker + 1] = LowerEnd(self.worker + 1, wire=self._wire, notes=notes, shared=shared)

    def post(self, edge: Edge, num_bytes: int) -> NcclReceive:
        end = self._ends[edge.source]
        return NcclReceive(end, end.post(num_bytes))

    def send(self, edge: Edge, message: Tensor) -> Later:
        return self._ends[edge.target].send(message)

    def reduce(self, tensor: Tensor, *, workers: Sequence[int]) -> None:
        self._sums.add_up(tensor, workers=workers)

    def finish(self) -> None:
        for end in self._ends.values():
            end.drain()
        self._host.finish()

    def close(self) -> None:
        for end in self._ends.values():
            end.close()
        self._wire.finish()
        self._lifeline.leave()
        self._host.close()

    def _connect(self, edge: Edge) -> None:
        # NCCL connects, and loads its kernel, at the first use, for which both hosts meet: over every edge in a fixed
        # order, before any thread launches anything, so that no later launch waits for another host.
        if self.worker == edge.source:
            message = torch.zeros(1, dtype=torch.uint8, device=self.device)
            self._wire.computed().synchronize()
            self._wire.launch_send(edge.target, message).synchronize()
        else:
            self._wire.launch_receive(edge.source, self._wire.room(edge.source, 1)).synchronize()
