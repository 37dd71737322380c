"""What launches the halves of transfers on a worker's device: NCCL on its GPU, and in tests a stand-in."""

import datetime
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from .nccl_sums import communicator
from .peer_memory import Moment
from .transport import Direction, edges


class Wire(Protocol):
    """What launches the halves of a transfer on this worker's device. Launching returns at once."""

    @property
    def device(self) -> torch.device: ...

    def enter_thread(self) -> None:
        """Called first in every thread that uses the wire."""
        ...

    def room(self, peer: int, num_bytes: int) -> Tensor:
        """Memory that nobody uses, uint8 `[num_bytes]`, for a message from a neighbour."""
        ...

    def computed(self) -> Moment:
        """When all current work will be done."""
        ...

    def launch_send(self, peer: int, message: Tensor) -> Moment:
        """Send a message that is computed; when it will have left."""
        ...

    def launch_receive(self, peer: int, room: Tensor) -> Moment:
        """Receive into a room; when the message will be there."""
        ...

    def hand_over(self, room: Tensor, arrived: Moment) -> None:
        """Make the current work wait for that moment, and keep the memory for it."""
        ...

    def finish(self) -> None:
        """Wait until everything launched is through."""
        ...


class NcclWire:
    """One worker's GPU and its communicators, one with each neighbour; all workers make theirs together."""

    def __init__(
        self, worker: int, *, num_stages: int, num_replicas: int, device: torch.device, timeout: datetime.timedelta
    ) -> None:
        self._device = device
        self._process_groups: dict[int, dist.ProcessGroup] = {}
        # NCCL's own stream waits for the current one at each call: here for one on which nothing runs.
        self._streams: dict[int, torch.cuda.Stream] = {}
        for edge in edges(num_stages=num_stages, num_replicas=num_replicas):
            if edge.direction is Direction.DOWN:
                process_group = communicator((edge.source, edge.target), timeout)
                if worker in (edge.source, edge.target):
                    peer = edge.source + edge.target - worker
                    self._process_groups[peer] = process_group
                    self._streams[peer] = torch.cuda.Stream(device)

    @property
    def device(self) -> torch.device:
        return self._device

    def enter_thread(self) -> None:
        # A thread begins on GPU 0, and would take memory there for nothing.
        torch.cuda.set_device(self._device)

    def room(self, peer: int, num_bytes: int) -> Tensor:
        # Made on this stream, so that the receive need not wait for whoever used the memory before.
        with torch.cuda.stream(self._streams[peer]):
            return torch.empty(num_bytes, dtype=torch.uint8, device=self._device)

    def computed(self) -> torch.cuda.Event:
        return self._after(torch.cuda.current_stream(self._device))

    def launch_send(self, peer: int, message: Tensor) -> torch.cuda.Event:
        with torch.cuda.stream(self._streams[peer]):
            return self._end_of(dist.isend(message, dst=peer, group=self._process_groups[peer]), peer)

    def launch_receive(self, peer: int, room: Tensor) -> torch.cuda.Event:
        with torch.cuda.stream(self._streams[peer]):
            return self._end_of(dist.irecv(room, src=peer, group=self._process_groups[peer]), peer)

    def hand_over(self, room: Tensor, arrived: Moment) -> None:
        assert isinstance(arrived, torch.cuda.Event)
        current = torch.cuda.current_stream(self._device)
        current.wait_event(arrived)
        room.record_stream(current)

    def finish(self) -> None:
        torch.cuda.synchronize(self._device)

    def _end_of(self, work: "dist.Work | None", peer: int) -> torch.cuda.Event:
        assert work is not None
        # Makes the stream wait, not the host.
        work.wait()
        return self._after(self._streams[peer])

    def _after(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        # Who waits for it sleeps: threads that spin would take the host's cores from the one that launches.
        event = torch.cuda.Event(blocking=True)
        event.record(stream)
        return event
