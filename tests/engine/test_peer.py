"""Rooms for messages: used again when they are empty, made anew when none is, waited for when there are enough."""

from pathlib import Path

import pytest
import torch

from loraplex.engine.errors import EngineError
from loraplex.engine.peer import MAX_ROOMS, Room, Rooms
from loraplex.engine.transport import Transport
from loraplex.tests.engine.host_memory import HostMemory, Questions
from loraplex.tests.engine.transports import down, run_peer


class Moment:
    """Past once somebody has waited for it."""

    def __init__(self) -> None:
        self.waited = False

    def query(self) -> bool:
        return self.waited

    def synchronize(self) -> None:
        self.waited = True


@pytest.fixture
def memory(tmp_path: Path) -> HostMemory:
    return HostMemory(tmp_path, 0)


def past() -> Questions:
    moment = Questions()
    moment.synchronize()
    return moment


def test_an_empty_room_is_used_again_and_another_is_made_while_it_is_not(memory: HostMemory) -> None:
    rooms = Rooms(memory)
    first = rooms.offer(10)
    second = rooms.offer(10)
    rooms.empty(first, past())
    assert (first.number, second.number, rooms.offer(10).number, rooms.offer(10).number) == (0, 1, 0, 2)


def test_the_smallest_free_room_that_fits_is_taken(memory: HostMemory) -> None:
    rooms = Rooms(memory)
    small, large = rooms.offer(1000), rooms.offer(1_000_000)
    for room in (large, small):
        rooms.empty(room, past())
    assert [rooms.offer(size).number for size in (900_000, 2000)] == [large.number, small.number]


def test_sizes_within_an_eighth_share_a_room(memory: HostMemory) -> None:
    def num_bytes(size: int) -> int:
        return len(Rooms(memory).offer(size).content)

    assert [num_bytes(size) for size in (0, 1, 65_536, 65_537)] == [65_536, 65_536, 65_536, 131_072]
    mib = 1 << 20
    assert [num_bytes(size) // mib for size in (62 * mib, 64 * mib - 1, 65 * mib, 72 * mib)] == [64, 64, 72, 72]


def test_with_enough_rooms_the_one_that_is_emptied_first_is_waited_for(memory: HostMemory) -> None:
    rooms = Rooms(memory)
    offered = [rooms.offer(10) for _ in range(MAX_ROOMS)]
    moments = {room.number: Moment() for room in offered}
    for place in (2, 0, 1, 3):
        rooms.empty(offered[place], moments[offered[place].number])
    assert rooms.offer(10) is offered[2]
    assert {number: moment.waited for number, moment in moments.items()} == {0: False, 1: False, 2: True, 3: False}
    assert rooms.offer(10) is offered[0]


def test_where_all_rooms_await_their_messages_more_are_made(memory: HostMemory) -> None:
    rooms = Rooms(memory)
    assert [rooms.offer(10).number for _ in range(MAX_ROOMS + 2)] == list(range(MAX_ROOMS + 2))


def test_a_room_is_free_only_when_neither_offered_nor_being_emptied() -> None:
    moment = Moment()
    room = Room(0, torch.empty(1), b"", empty=moment)
    found = [room.is_free()]
    moment.synchronize()
    found.append(room.is_free())
    room.is_offered = True
    assert [*found, room.is_free()] == [False, True, False]


def test_a_long_run_with_receives_ahead_needs_no_more_rooms_than_agreed() -> None:
    def work(transport: Transport) -> object:
        sizes = [1 + 997 * number % 60_000 for number in range(60)]
        if transport.worker == 0:
            for number, size in enumerate(sizes):
                transport.send(down(0), torch.full((size,), number, dtype=torch.uint8))
            transport.finish()
            return None
        posted, seen = transport.post(down(0), sizes[0]), []
        for following in [*sizes[1:], None]:
            ahead = None if following is None else transport.post(down(0), following)
            content = posted.wait()
            seen.append((len(content), set(content.tolist())))
            posted = ahead or posted
        memory = transport._memory  # type: ignore[attr-defined]
        return seen == [(size, {number}) for number, size in enumerate(sizes)], memory.num_rooms <= MAX_ROOMS + 2

    # Beside those of the edge: one to try whether neighbours reach each other, one offered in advance.
    assert run_peer(work)[1] == (True, True)


@pytest.mark.parametrize(("sent", "due"), [(5, 6), (6, 5)])
def test_another_size_than_was_due_is_told_by_the_sender(sent: int, due: int) -> None:
    def work(transport: Transport) -> object:
        if transport.worker == 1:
            posted = transport.post(down(0), due)
            transport.barrier()
            return posted.on_host()
        with pytest.raises(EngineError, match=f"has room for {due} bytes where worker 0 sends {sent}"):
            transport.send(down(0), torch.zeros(sent, dtype=torch.uint8))
        transport.barrier()
        return "told"

    assert run_peer(work)[0] == "told"
