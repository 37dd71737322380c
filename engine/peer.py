"""Transport between GPUs of one machine: the sender copies into the receiver's memory, and no kernel waits.

A receiver offers room for a message to its neighbour, in a note on the host. The sender copies the message there behind
the work that makes it, and notes on the host that it has: from then on the receiver's GPU waits for an event, its host
for nothing. So whatever a GPU waits for was launched before, on some GPU, and a waiting GPU needs no host to go on.
With NCCL that is otherwise: its receives run until the sender's host has launched the send, and a host that loads a
kernel in the meantime may have to wait for all that runs on its GPU, hence for the other host (docs/log.md).

An event belongs to a room. It is recorded anew only for a message in a room that was offered anew, which is after the
receiver's GPU has emptied it, hence after the receiver asked to wait for the former record.
"""

import datetime
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import EngineError
from .gloo import MAX_OUTSTANDING_SENDS, GlooTransport
from .lifeline import Lifeline, OnLost, end_process
from .nccl_sums import NcclSums
from .notes import Notes, PostedNote, SentNote
from .over_host import OverHost
from .peer_memory import ADDRESS_BYTES, Memory, Moment, Signal
from .recorder import Left
from .transport import Direction, Edge, edges

_NOTE = struct.Struct(f"<qq{ADDRESS_BYTES}s")
"""Number of a room, bytes of the message; in an offer where the room lies, in a notice which event to wait for."""
MAX_ROOMS = 4
"""On each edge, for messages of one size: beyond, the receiver's host waits until its GPU has emptied one."""
_SMALLEST_ROOM_BYTES = 1 << 16


@dataclass(slots=True)
class Room:
    """Where a message comes to lie, again and again."""

    number: int
    content: Tensor
    address: bytes
    is_offered: bool = False
    empty: Moment | None = None
    """When the last message was out, once that has been asked for."""

    def is_free(self) -> bool:
        return not self.is_offered and (self.empty is None or self.empty.query())


class Rooms:
    """The rooms of one edge at its receiver."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._num_made = 0
        self._rooms: list[Room] = []
        """Those emptied last come last."""

    def offer(self, num_bytes: int) -> Room:
        """A free room of at least so many bytes. Waits for the device only where MAX_ROOMS of them are not free."""
        fitting = [room for room in self._rooms if len(room.content) >= num_bytes]
        free = [room for room in fitting if room.is_free()]
        if free:
            room = min(free, key=lambda room: len(room.content))
        else:
            room = self._emptied_first(fitting) or self._made(num_bytes)
        room.is_offered, room.empty = True, None
        return room

    def empty(self, room: Room, when: Moment) -> None:
        """Its message has been asked out, and is out at that moment."""
        room.is_offered, room.empty = False, when
        self._rooms.remove(room)
        self._rooms.append(room)

    def _emptied_first(self, fitting: list[Room]) -> Room | None:
        leaving = [room for room in fitting if not room.is_offered]
        if len(fitting) < MAX_ROOMS or not leaving:
            return None
        assert leaving[0].empty is not None
        leaving[0].empty.synchronize()
        return leaving[0]

    def _made(self, num_bytes: int) -> Room:
        # Sizes of messages differ a little; those that are an eighth of a power of two apart share rooms.
        step = max(_SMALLEST_ROOM_BYTES, 1 << max(num_bytes.bit_length() - 4, 0))
        content, address = self._memory.room(-(-max(num_bytes, 1) // step) * step)
        room = Room(self._num_made, content, address)
        self._num_made += 1
        self._rooms.append(room)
        return room


class PeerReceive:
    """A message whose room has been offered."""

    def __init__(
        self, *, room: Room, rooms: Rooms, memory: Memory, num_bytes: int, notice: PostedNote, offer: SentNote
    ) -> None:
        self._room = room
        self._rooms = rooms
        self._memory = memory
        self._num_bytes = num_bytes
        self._notice = notice
        self._offer = offer

    def wait(self) -> Tensor:
        # Until the sender has launched the copy, which the GPU then waits for.
        number, num_bytes, signal = _NOTE.unpack(self._notice.wait())
        self._offer.settle()
        if (number, num_bytes) != (self._room.number, self._num_bytes):
            raise EngineError(
                f"a message of {num_bytes} bytes came in room {number} where one of {self._num_bytes} bytes was due in "
                f"room {self._room.number}; the workers do not run the same plan: start them with one plan"
            )
        message, empty = self._memory.take(self._room.content, num_bytes, signal)
        self._rooms.empty(self._room, empty)
        return message

    def on_host(self) -> Tensor | None:
        return None


@dataclass(slots=True)
class _Way:
    # One edge as its sender knows it: a signal for each of the receiver's rooms, and notices under way.
    signals: dict[int, Signal]
    notices: deque[SentNote]


class PeerTransport(OverHost):
    """One worker's end. All workers make theirs together, in the same order."""

    def __init__(
        self,
        host: GlooTransport,
        memory: Memory,
        *,
        num_stages: int,
        num_replicas: int,
        timeout: datetime.timedelta,
        on_lost: OnLost = end_process,
    ) -> None:
        super().__init__(host, device=memory.device)
        self._memory = memory
        # Offers go against an edge's direction and notices along it, so each finds its reader by who writes to whom.
        self._notes = {direction: Notes(num_bytes=_NOTE.size, timeout=timeout) for direction in Direction}
        self._rooms: dict[Edge, Rooms] = {}
        self._ways: dict[Edge, _Way] = {}
        self._sums = NcclSums(
            host, num_stages=num_stages, num_replicas=num_replicas, device=memory.device, timeout=timeout
        )
        self._lifeline = Lifeline(on_lost=on_lost)
        for edge in edges(num_stages=num_stages, num_replicas=num_replicas):
            # What cannot be opened is to fail here, not in the midst of training.
            if self.worker == edge.source:
                self._ways[edge] = _Way({}, deque())
                self.send(edge, torch.zeros(1, dtype=torch.uint8, device=self.device))
            elif self.worker == edge.target:
                self._rooms[edge] = Rooms(memory)
                self.post(edge, 1).wait()
        self.finish()
        self.barrier()

    def post(self, edge: Edge, num_bytes: int) -> PeerReceive:
        rooms, notes = self._rooms[edge], self._notes[edge.direction]
        room = rooms.offer(num_bytes)
        # Before the offer, so that a notice never waits for its reader.
        notice = notes.post(edge.source)
        offer = notes.send(edge.source, _NOTE.pack(room.number, num_bytes, room.address))
        return PeerReceive(room=room, rooms=rooms, memory=self._memory, num_bytes=num_bytes, notice=notice, offer=offer)

    def send(self, edge: Edge, message: Tensor) -> Left:
        way, notes = self._ways[edge], self._notes[edge.direction]
        number, num_bytes, address = _NOTE.unpack(notes.post(edge.target).wait())
        if num_bytes != len(message):
            raise EngineError(
                f"worker {edge.target} has room for {num_bytes} bytes where worker {edge.source} sends {len(message)}; "
                "the workers do not run the same plan: start them with one plan"
            )
        if number not in way.signals:
            way.signals[number] = self._memory.signal()
        signal = way.signals[number]
        left = self._memory.put(message, address, signal)
        # After the signal was recorded: who waits for an event waits for its last record.
        way.notices.append(notes.send(edge.target, _NOTE.pack(number, num_bytes, signal.address)))
        while len(way.notices) > MAX_OUTSTANDING_SENDS:
            way.notices.popleft().settle()
        return left

    def reduce(self, tensor: Tensor, *, workers: Sequence[int]) -> None:
        self._sums.add_up(tensor, workers=workers)

    def finish(self) -> None:
        for way in self._ways.values():
            while way.notices:
                way.notices.popleft().settle()
        self._memory.finish()
        self._host.finish()

    def close(self) -> None:
        # A neighbour may still read what we have written, and signals end with their process.
        self._memory.finish()
        self._lifeline.leave()
        self._host.close()
