"""What both ends of a pair of neighbours do alike: they keep rooms and messages, launch a half when told, and talk.

Each end has a thread that waits until messages are computed, and such as read notes and launch (nccl_pair.py). What
any of them meets, the main thread hears of at its next call.
"""

import struct
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor

from .errors import PeerLostError
from .gloo import MAX_OUTSTANDING_SENDS
from .nccl_wire import Wire
from .notes import Notes, SentNote
from .peer_memory import Moment
from .recorder import Later, now_ns

NOTE = struct.Struct("<qq")
"""A word, and the bytes of the room or message that it is about."""
_MAX_NOTES_UNDER_WAY = 16
"""More than rooms, messages and answers that one pair can have, so that nobody waits for a note to be taken."""


class Word(IntEnum):
    """What a note says."""

    ROOM = 0
    READY = 1
    DOWN = 2
    UP = 3
    NOW = 4
    ENDED = 5
    BYE = 6


class Shared:
    """What all threads of one worker wait at, and the first error that any of them met."""

    def __init__(self, *, timeout_s: float) -> None:
        self.changed = threading.Condition()
        self._timeout_s = timeout_s
        self._error: BaseException | None = None

    @contextmanager
    def when(self, ready: Callable[[], bool], *, silent_peer: int | None = None) -> Iterator[None]:
        """Wait until something holds, and stay alone while the block runs; others look again after it.

        Raises what a thread has met, and PeerLostError when this took too long and a peer is to blame.
        """
        with self.changed:
            timeout_s = None if silent_peer is None else self._timeout_s
            came = self.changed.wait_for(lambda: self._error is not None or ready(), timeout_s)
            if self._error is not None:
                raise self._error
            if not came:
                raise PeerLostError(f"worker {silent_peer} is gone (nothing came of it in {self._timeout_s:.0f} s)")
            yield
            self.changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Tell everybody, unless there was an error before."""
        with self.changed:
            self._error = self._error or error
            self.changed.notify_all()


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message that goes, when it will be computed, and whom to tell when it has left."""

    content: Tensor
    computed: Moment
    left: Later


@dataclass(slots=True)
class Room:
    """Room for one message, and when that will be there, once its receive has been launched."""

    content: Tensor
    arrived: Moment | None = None


class PairEnd(ABC):
    """What both ends of a pair do alike."""

    def __init__(self, peer: int, *, wire: Wire, notes: Notes, shared: Shared) -> None:
        self._peer = peer
        self._wire = wire
        self._notes = notes
        self._shared = shared
        self._saying = threading.Lock()
        self._said: deque[SentNote] = deque()
        self._rooms: deque[Room] = deque()
        """Whose receives have not been launched."""
        self._parcels: deque[Parcel] = deque()
        """That have not left, of which the first so many are computed:"""
        self._num_computed = 0
        self._is_closed = False
        self._num_threads = 0

    def post(self, num_bytes: int) -> Room:
        """Make room for the next message. Launches nothing."""
        room = Room(self._wire.room(self._peer, num_bytes))
        with self._shared.when(lambda: True):
            self._rooms.append(room)
        self._has_room(room)
        return room

    def wait(self, room: Room) -> Tensor:
        """The message, for the current work; waits on the host until its receive has been launched."""
        with self._shared.when(lambda: room.arrived is not None, silent_peer=self._peer):
            arrived = room.arrived
        assert arrived is not None
        self._wire.hand_over(room.content, arrived)
        return room.content

    def send(self, message: Tensor) -> Later:
        """Take a message that current work makes, waiting while too many are before it. Launches nothing."""
        parcel = Parcel(message, self._wire.computed(), Later())
        with self._shared.when(lambda: len(self._parcels) < MAX_OUTSTANDING_SENDS, silent_peer=self._peer):
            self._parcels.append(parcel)
        return parcel.left

    def drain(self) -> None:
        """Wait until all messages have left."""
        with self._shared.when(lambda: not self._parcels, silent_peer=self._peer):
            pass

    def close(self) -> None:
        """End the threads; both ends call it, when everything has been received."""
        with self._shared.when(lambda: True):
            self._is_closed = True
        with self._shared.when(lambda: not self._num_threads, silent_peer=self._peer):
            pass
        while self._said:
            self._said.popleft().settle()

    def _start(self, *bodies: Callable[[], None]) -> None:
        self._num_threads = len(bodies)
        for body in bodies:
            name = f"loraplex-nccl-{self._peer}{body.__name__}"
            threading.Thread(target=self._run, args=(body,), name=name, daemon=True).start()

    def _run(self, body: Callable[[], None]) -> None:
        try:
            self._wire.enter_thread()
            body()
            with self._shared.when(lambda: True):
                self._num_threads -= 1
        except BaseException as error:
            self._shared.fail(error)
            with self._shared.changed:
                # Nobody is to wait for the leaving of what will never leave.
                for parcel in self._parcels:
                    parcel.left.tell(0)

    def _compute(self) -> None:
        # Notes in order which messages are computed. It may wait for long, and so does nothing else.
        while True:
            with self._shared.when(lambda: self._is_closed or len(self._parcels) > self._num_computed):
                if len(self._parcels) == self._num_computed:
                    return
                parcel = self._parcels[self._num_computed]
            parcel.computed.synchronize()
            with self._shared.when(lambda: True):
                self._num_computed += 1
            self._has_computed(parcel)

    def _receive(self) -> None:
        # This end's half of a message that comes.
        room = self._rooms[0]
        arrived = self._wire.launch_receive(self._peer, room.content)
        with self._shared.when(lambda: True):
            self._rooms.popleft()
            room.arrived = arrived
        arrived.synchronize()

    def _send(self) -> None:
        # This end's half of a message that goes.
        parcel = self._parcels[0]
        self._wire.launch_send(self._peer, parcel.content).synchronize()
        parcel.left.tell(now_ns())
        with self._shared.when(lambda: True):
            self._parcels.popleft()
            self._num_computed -= 1

    def _say(self, word: Word, num_bytes: int = 0) -> None:
        with self._saying:
            self._said.append(self._notes.send(self._peer, NOTE.pack(word, num_bytes)))
            while len(self._said) > _MAX_NOTES_UNDER_WAY:
                self._said.popleft().settle()

    def _heard(self) -> Iterator[tuple[Word, int]]:
        # What the other end says, until it says no more.
        while True:
            word, num_bytes = NOTE.unpack(self._notes.post(self._peer).wait())
            if word == Word.BYE:
                return
            yield Word(word), num_bytes

    @abstractmethod
    def _has_room(self, room: Room) -> None: ...

    @abstractmethod
    def _has_computed(self, parcel: Parcel) -> None: ...
