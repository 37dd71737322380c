"""How two neighbours agree on the next message between them, so that both launch their halves at once.

The upper worker (the next stage) tells the lower one by notes of every room it has made and every message it has
computed. The lower one knows its own, and decides: one message at a time, both directions counted, alternating where
both could go. `nccl.py` says what that is good for.

    lower: DOWN or UP    upper: NOW, launches its half    lower: launches its half    upper, at its end: ENDED

NOW is said before the launch, not behind it: once a half runs, nothing is left for its own host to do. Were it told
behind, a host that stopped between the two to load a kernel would wait for a half of which nobody else knows.

One thread reads the other end's notes; at the upper end it launches too, at the lower end another does.
"""

from collections import deque

from .errors import EngineError
from .nccl_end import PairEnd, Parcel, Room, Shared, Word
from .nccl_wire import Wire
from .notes import Notes
from .transport import Direction


class UpperEnd(PairEnd):
    """Tells what it has, and does as it is told. `peer` is the stage before."""

    def __init__(self, peer: int, *, wire: Wire, notes: Notes, shared: Shared) -> None:
        super().__init__(peer, wire=wire, notes=notes, shared=shared)
        self._start(self._compute, self._follow)

    def _has_room(self, room: Room) -> None:
        self._say(Word.ROOM, len(room.content))

    def _has_computed(self, parcel: Parcel) -> None:
        self._say(Word.READY, len(parcel.content))

    def _follow(self) -> None:
        for word, _ in self._heard():
            self._say(Word.NOW)
            if word == Word.DOWN:
                self._receive()
            else:
                self._send()
            self._say(Word.ENDED)
        # By this thread, so that it comes behind all it has said.
        self._say(Word.BYE)


class LowerEnd(PairEnd):
    """Decides which message is next. `peer` is the stage behind."""

    def __init__(self, peer: int, *, wire: Wire, notes: Notes, shared: Shared) -> None:
        super().__init__(peer, wire=wire, notes=notes, shared=shared)
        self._heard_of: dict[Word, deque[int]] = {word: deque() for word in Word}
        """What the upper end has said and was not used yet."""
        self._last = Direction.UP
        self._start(self._compute, self._listen, self._lead)

    def _has_room(self, room: Room) -> None:
        pass

    def _has_computed(self, parcel: Parcel) -> None:
        pass

    def _listen(self) -> None:
        for word, num_bytes in self._heard():
            with self._shared.when(lambda: True):
                self._heard_of[word].append(num_bytes)

    def _lead(self) -> None:
        while True:
            with self._shared.when(lambda: self._is_closed or self._next() is not None):
                direction = self._next()
                if direction is None:
                    break
                self._last = direction
                self._check(direction)
            self._say(Word[direction.name])
            self._hear(Word.NOW)
            if direction is Direction.DOWN:
                self._send()
            else:
                self._receive()
            self._hear(Word.ENDED)
        self._say(Word.BYE)

    def _next(self) -> Direction | None:
        # The direction whose turn it is among those in which a message can go.
        can_go = {
            Direction.DOWN: self._num_computed > 0 and len(self._heard_of[Word.ROOM]) > 0,
            Direction.UP: len(self._rooms) > 0 and len(self._heard_of[Word.READY]) > 0,
        }
        turns = sorted(can_go, key=lambda direction: direction is self._last)
        return next((direction for direction in turns if can_go[direction]), None)

    def _check(self, direction: Direction) -> None:
        # NCCL would write past the end of a room, or wait for what is missing.
        if direction is Direction.DOWN:
            room, sent = self._heard_of[Word.ROOM].popleft(), len(self._parcels[0].content)
        else:
            room, sent = len(self._rooms[0].content), self._heard_of[Word.READY].popleft()
        if room != sent:
            raise EngineError(
                f"a message {direction} between this worker and worker {self._peer} has {sent} bytes and room for "
                f"{room}; the workers do not run the same plan: start them with one plan"
            )

    def _hear(self, word: Word) -> None:
        with self._shared.when(lambda: len(self._heard_of[word]) > 0):
            self._heard_of[word].popleft()
