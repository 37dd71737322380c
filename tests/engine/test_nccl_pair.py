"""One end of a pair, with a script in place of the other: what it launches when, and who hears of what goes wrong."""

import queue
import threading
import time
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor

from loraplex.engine.errors import EngineError, PeerLostError
from loraplex.engine.gloo import MAX_OUTSTANDING_SENDS
from loraplex.engine.nccl_end import NOTE, PairEnd, Shared, Word
from loraplex.engine.nccl_pair import LowerEnd, UpperEnd
from loraplex.engine.notes import Notes
from loraplex.tests.engine.host_wire import Once, WithoutGpu
from loraplex.tests.engine.transports import message

_SECONDS = 5
"""Until what must happen counts as not happening."""
_PEER = 1


class ScriptedNotes:
    """What the other end says, and what it is told. What is put as an error is met by the thread that reads."""

    def __init__(self) -> None:
        self._said: queue.Queue[bytes | Exception] = queue.Queue()
        self._told: queue.Queue[bytes] = queue.Queue()

    def says(self, *words: Word, num_bytes: int = 1) -> None:
        for word in words:
            self._said.put(NOTE.pack(word, num_bytes))

    def fails(self, error: Exception) -> None:
        self._said.put(error)

    def is_told(self) -> tuple[Word, int]:
        word, num_bytes = NOTE.unpack(self._told.get(timeout=_SECONDS))
        return Word(word), num_bytes

    def has_been_told(self) -> tuple[Word, int]:
        word, num_bytes = NOTE.unpack(self._told.get_nowait())
        return Word(word), num_bytes

    def is_told_nothing(self) -> bool:
        # Threads are given the time to do what they should not.
        time.sleep(0.02)
        return self._told.empty()

    def post(self, peer: int) -> "ScriptedNotes":
        return self

    def wait(self) -> bytes:
        note = self._said.get()
        if isinstance(note, Exception):
            raise note
        return note

    def send(self, peer: int, note: bytes) -> "ScriptedNotes":
        self._told.put(note)
        return self

    def settle(self) -> None:
        pass


class ListingWire(WithoutGpu):
    """Lists what is launched. Messages are computed, and halves end, when the test says so."""

    def __init__(self) -> None:
        self.launched: queue.Queue[str] = queue.Queue()
        self.computing: list[Once] = []
        self.halves: list[Once] = []
        self.handed_over: list[Once] = []
        self.error: Exception | None = None

    def room(self, peer: int, num_bytes: int) -> Tensor:
        return torch.zeros(num_bytes, dtype=torch.uint8)

    def computed(self) -> Once:
        self.computing.append(Once())
        return self.computing[-1]

    def launch_send(self, peer: int, message: Tensor) -> Once:
        return self._launch(f"send {message.tolist()} to {peer}")

    def launch_receive(self, peer: int, room: Tensor) -> Once:
        return self._launch(f"receive {len(room)} from {peer}")

    def hand_over(self, room: Tensor, arrived: object) -> None:
        assert isinstance(arrived, Once)
        self.handed_over.append(arrived)

    def finish(self) -> None:
        pass

    def next(self) -> str:
        return self.launched.get(timeout=_SECONDS)

    def end_last(self) -> None:
        self.halves[-1].tell()

    def _launch(self, what: str) -> Once:
        if self.error is not None:
            raise self.error
        self.halves.append(Once())
        self.launched.put(what)
        return self.halves[-1]


class Scene:
    """One end with its surroundings."""

    def __init__(self, kind: Callable[..., PairEnd], *, timeout_s: float = _SECONDS) -> None:
        self.notes, self.wire = ScriptedNotes(), ListingWire()
        self.shared = Shared(timeout_s=timeout_s)
        self.end = kind(_PEER, wire=self.wire, notes=cast(Notes, self.notes), shared=self.shared)

    def computed(self, *contents: int) -> None:
        """Send messages that are computed at once."""
        for content in contents:
            self.end.send(message(content))
            self.wire.computing[-1].tell()


def test_the_lower_end_sends_when_the_message_is_computed_the_room_made_and_the_other_launches_now() -> None:
    scene = Scene(LowerEnd)
    left = scene.end.send(message(7))
    scene.notes.says(Word.ROOM)
    assert scene.notes.is_told_nothing()
    scene.wire.computing[0].tell()
    assert scene.notes.is_told() == (Word.DOWN, 0)
    assert scene.wire.launched.empty()
    scene.notes.says(Word.NOW)
    assert scene.wire.next() == "send [7] to 1"
    assert not left.is_past()
    scene.wire.end_last()
    assert left.host_ns() > 0
    scene.end.drain()


def test_the_lower_end_receives_when_it_has_room_and_the_message_is_ready() -> None:
    scene = Scene(LowerEnd)
    scene.notes.says(Word.READY, num_bytes=3)
    assert scene.notes.is_told_nothing()
    room = scene.end.post(3)
    assert scene.notes.is_told() == (Word.UP, 0)
    scene.notes.says(Word.NOW)
    assert scene.wire.next() == "receive 3 from 1"
    # The host waits for the launch, not for the message.
    assert scene.end.wait(room).tolist() == [0, 0, 0]
    assert scene.wire.handed_over == scene.wire.halves
    assert not scene.wire.halves[0].query()


def test_the_upper_end_tells_what_it_has_and_says_now_before_it_launches() -> None:
    scene = Scene(UpperEnd)
    scene.end.post(5)
    assert scene.notes.is_told() == (Word.ROOM, 5)
    scene.end.send(message(1, 2))
    assert scene.notes.is_told_nothing()
    scene.wire.computing[0].tell()
    assert scene.notes.is_told() == (Word.READY, 2)
    assert scene.wire.launched.empty()
    for word, launched in ((Word.UP, "send [1, 2] to 1"), (Word.DOWN, "receive 5 from 1")):
        scene.notes.says(word)
        assert scene.wire.next() == launched
        # Said already, since the launch has been seen.
        assert scene.notes.has_been_told() == (Word.NOW, 0)
        assert scene.notes.is_told_nothing()
        scene.wire.end_last()
        assert scene.notes.is_told() == (Word.ENDED, 0)


def test_directions_take_turns_where_both_wait_and_nothing_begins_before_both_halves_have_ended() -> None:
    scene = Scene(LowerEnd)
    scene.computed(10)
    scene.notes.says(Word.ROOM)
    assert scene.notes.is_told() == (Word.DOWN, 0)
    # While that is under way both directions come to wait, this one first.
    scene.computed(11, 12)
    scene.notes.says(Word.ROOM, Word.ROOM, Word.READY, Word.READY, Word.READY, Word.NOW)
    for _ in range(3):
        scene.end.post(1)
    turns = [scene.wire.next()]
    for word in (Word.UP, Word.DOWN, Word.UP, Word.DOWN, Word.UP):
        # One half ended is not enough, whichever it is.
        if word is Word.UP:
            scene.notes.says(Word.ENDED)
        else:
            scene.wire.end_last()
        assert scene.notes.is_told_nothing()
        if word is Word.UP:
            scene.wire.end_last()
        else:
            scene.notes.says(Word.ENDED)
        assert scene.notes.is_told() == (word, 0)
        scene.notes.says(Word.NOW)
        turns.append(scene.wire.next())
    assert turns == [
        "send [10] to 1",
        "receive 1 from 1",
        "send [11] to 1",
        "receive 1 from 1",
        "send [12] to 1",
        "receive 1 from 1",
    ]


def test_one_direction_goes_on_while_the_other_has_nothing() -> None:
    scene = Scene(LowerEnd)
    scene.computed(1, 2, 3)
    scene.notes.says(Word.ROOM, Word.ROOM, Word.ROOM)
    for content in (1, 2, 3):
        assert scene.notes.is_told() == (Word.DOWN, 0)
        scene.notes.says(Word.NOW)
        assert scene.wire.next() == f"send [{content}] to 1"
        scene.wire.end_last()
        scene.notes.says(Word.ENDED)
    scene.end.drain()


@pytest.mark.parametrize("direction", ["down", "up"])
def test_another_size_than_there_is_room_for_is_told_before_anything_is_launched(direction: str) -> None:
    scene = Scene(LowerEnd)
    if direction == "down":
        scene.computed(1)
        scene.notes.says(Word.ROOM, num_bytes=6)
        told = "down between this worker and worker 1 has 1 bytes and room for 6; the workers do not run the same plan"
        with pytest.raises(EngineError, match=told):
            scene.end.drain()
    else:
        room = scene.end.post(6)
        scene.notes.says(Word.READY, num_bytes=5)
        with pytest.raises(EngineError, match="up between this worker and worker 1 has 5 bytes and room for 6"):
            scene.end.wait(room)
    assert scene.wire.launched.empty()


@pytest.mark.parametrize("kind", [LowerEnd, UpperEnd])
def test_what_a_thread_meets_reaches_every_call_and_nobody_waits_for_what_will_not_leave(
    kind: Callable[..., PairEnd],
) -> None:
    scene = Scene(kind)
    room = scene.end.post(1)
    left = [scene.end.send(message(number)) for number in range(2)]
    scene.wire.error = ValueError("the launch failed")
    scene.wire.computing[0].tell()
    scene.notes.says(*([Word.ROOM, Word.NOW] if kind is LowerEnd else [Word.UP]))
    calls: list[Callable[[], object]] = [
        lambda: scene.end.wait(room),
        scene.end.drain,
        lambda: scene.end.post(1),
        lambda: scene.end.send(message(3)),
        scene.end.close,
    ]
    for call in calls:
        with pytest.raises(ValueError, match="the launch failed"):
            call()
    assert [moment.host_ns() for moment in left] == [0, 0]


def test_a_lost_peer_is_told_to_whoever_waits_for_another_neighbour_too() -> None:
    scene = Scene(LowerEnd)
    other = UpperEnd(5, wire=scene.wire, notes=cast(Notes, ScriptedNotes()), shared=scene.shared)
    room = other.post(1)
    threading.Timer(0.05, scene.notes.fails, [PeerLostError("worker 1 is gone (connection closed)")]).start()
    with pytest.raises(PeerLostError, match=r"worker 1 is gone \(connection closed\)"):
        other.wait(room)


def test_who_waits_too_long_for_a_silent_peer_says_so() -> None:
    scene = Scene(LowerEnd, timeout_s=0.05)
    room = scene.end.post(1)
    scene.computed(*range(MAX_OUTSTANDING_SENDS))
    calls: list[Callable[[], object]] = [
        lambda: scene.end.wait(room),
        scene.end.drain,
        lambda: scene.end.send(message(9)),
    ]
    for call in calls:
        with pytest.raises(PeerLostError, match=r"worker 1 is gone \(nothing came of it in 0 s\)"):
            call()


def test_the_last_word_ends_both_ends_and_neither_before_it_has_heard_the_others() -> None:
    lower, upper = Scene(LowerEnd), Scene(UpperEnd)
    threading.Timer(0.05, lower.notes.says, [Word.BYE]).start()
    lower.end.close()
    assert lower.notes.is_told() == (Word.BYE, 0)
    assert upper.notes.is_told_nothing()
    upper.notes.says(Word.BYE)
    upper.end.close()
    assert upper.notes.is_told() == (Word.BYE, 0)
