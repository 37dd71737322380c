"""What NCCL's transport launches and when, with threads in place of kernels, and hosts that stand still to load."""

import threading
import time
from typing import cast

import pytest
import torch

from loraplex.engine.errors import PeerLostError
from loraplex.engine.transport import Transport
from loraplex.tests.engine.host_wire import Half, HostWire
from loraplex.tests.engine.transports import down, message, run_nccl_host, up


def wire_of(transport: Transport) -> HostWire:
    wire = transport._wire  # type: ignore[attr-defined]
    assert isinstance(wire, HostWire)
    return wire


def test_nothing_is_launched_before_the_message_is_computed_and_its_room_is_made() -> None:
    def work(transport: Transport) -> object:
        wire = wire_of(transport)
        begun = len(wire.halves)
        told = []
        if transport.worker == 0:
            # The first finds a room and takes long to compute, the second is computed long before it has a room.
            transport.barrier()
            told.append(time.perf_counter_ns() + 200_000_000)
            transport.send(down(0), message(1))
            transport.send(down(0), message(2))
            transport.finish()
        else:
            posted = transport.post(down(0), 1)
            transport.barrier()
            posted.wait()
            time.sleep(0.5)
            told.append(time.perf_counter_ns())
            transport.post(down(0), 1).wait()
        return told, [half.launched_ns for half in wire.halves[begun:]]

    results = cast(list[tuple[list[int], list[int]]], run_nccl_host(work, compute_s=0.2))
    (computed, sends), (posted, receives) = results
    assert min(sends[0], receives[0]) >= computed[0]
    assert min(sends[1], receives[1]) >= posted[0]
    assert (len(sends), len(receives)) == (2, 2)


def test_between_two_neighbours_one_message_is_under_way_at_a_time() -> None:
    count = 12

    def work(transport: Transport) -> object:
        wire = wire_of(transport)
        begun = len(wire.halves)
        mine, other = (down(0), up(1)) if transport.worker == 0 else (up(1), down(0))
        posted = [transport.post(other, 1000) for _ in range(count)]
        for number in range(count):
            transport.send(mine, torch.full((1000,), number, dtype=torch.uint8))
        seen = [receive.wait()[-1].item() for receive in posted]
        transport.finish()
        wire.finish()
        return seen, wire.halves[begun:]

    results = cast(list[tuple[list[int], list[Half]]], run_nccl_host(work, compute_s=0.0))
    assert [seen for seen, _ in results] == [list(range(count))] * 2
    lower, upper = (halves for _, halves in results)
    assert len(lower) == len(upper) == 2 * count
    assert [(ours.kind, theirs.kind) for ours, theirs in zip(lower, upper, strict=True)] == [
        ("send", "receive") if half.kind == "send" else ("receive", "send") for half in lower
    ]
    ends = [max(ours.ended_ns, theirs.ended_ns) for ours, theirs in zip(lower, upper, strict=True)]
    begins = [min(ours.launched_ns, theirs.launched_ns) for ours, theirs in zip(lower, upper, strict=True)]
    assert all(end <= begin for end, begin in zip(ends, begins[1:], strict=False))


def test_hosts_that_stand_still_until_nothing_runs_never_wait_for_each_other_for_ever() -> None:
    # As 1F1B on four stages: each loads again and again, right behind launches as well.
    count, last = 20, 3

    def work(transport: Transport) -> object:
        worker, wire = transport.worker, wire_of(transport)
        wire.stand_still_for_notes_too()
        is_over = threading.Event()

        def load() -> None:
            while not is_over.wait(0.001):
                wire.load()

        loader = threading.Thread(target=load)
        loader.start()
        seen = []
        downs = [transport.post(down(worker - 1), 8) for _ in range(count)] if worker > 0 else []
        ups = [transport.post(up(worker + 1), 8) for _ in range(count)] if worker < last else []
        for number in range(count + last - worker):
            if number < count:
                made = downs[number].wait() if downs else torch.full((8,), number, dtype=torch.uint8)
                transport.send(down(worker) if worker < last else up(worker), made + 1)
            if number >= last - worker and worker < last:
                came = ups[number - last + worker].wait()
                seen.append(came[0].item())
                if worker > 0:
                    transport.send(up(worker), came + 1)
        transport.finish()
        is_over.set()
        loader.join()
        return seen

    results = run_nccl_host(work, num_stages=4, compute_s=0.0, launch_s=0.002)
    assert results == [[number + 8 - 2 - worker for number in range(count)] for worker in range(3)] + [[]]


def test_a_peer_that_is_lost_while_its_half_is_missing_ends_the_other() -> None:
    def work(transport: Transport) -> object:
        if transport.worker == 0:
            transport.send(down(0), message(1))
            transport.finish()
            return "has left"
        is_due = threading.Event()

        def launch_receive(peer: int, room: torch.Tensor) -> object:
            is_due.set()
            time.sleep(60)
            raise AssertionError

        wire_of(transport).launch_receive = launch_receive  # type: ignore[method-assign,assignment]
        transport.post(down(0), 1)
        is_due.wait()
        time.sleep(0.1)
        return "gone"

    first, second = run_nccl_host(work)
    assert second == "gone"
    assert isinstance(first, PeerLostError)
    assert str(first).startswith("worker 1 is gone (")


def test_leaving_ends_every_thread_that_launches() -> None:
    def work(transport: Transport) -> object:
        def threads() -> list[str]:
            return sorted(thread.name for thread in threading.enumerate() if "nccl" in thread.name)

        before = threads()
        # An end that closes ends the other one's thread too, perhaps before that has looked.
        transport.barrier()
        for end in transport._ends.values():  # type: ignore[attr-defined]
            end.close()
        transport._ends.clear()  # type: ignore[attr-defined]
        for thread in threading.enumerate():
            if "nccl" in thread.name:
                thread.join(5)
        return before, threads()

    lower = ["loraplex-nccl-1_compute", "loraplex-nccl-1_lead", "loraplex-nccl-1_listen"]
    upper = ["loraplex-nccl-0_compute", "loraplex-nccl-0_follow"]
    assert run_nccl_host(work) == [(lower, []), (upper, [])]


@pytest.mark.parametrize("worker", [0, 1])
def test_what_a_thread_meets_is_raised_by_the_next_call(worker: int) -> None:
    def work(transport: Transport) -> object:
        def fail(peer: int, content: torch.Tensor) -> object:
            raise ValueError("the launch failed")

        if transport.worker == worker:
            wire_of(transport).launch_send = fail  # type: ignore[method-assign,assignment]
            wire_of(transport).launch_receive = fail  # type: ignore[method-assign,assignment]
        if transport.worker == 0:
            left = transport.send(down(0), message(1))
            try:
                transport.finish()
            finally:
                assert left.host_ns() == 0  # type: ignore[union-attr]
        else:
            transport.post(down(0), 1).wait()
        return None

    results = run_nccl_host(work)
    assert isinstance(results[worker], ValueError)
    assert isinstance(results[1 - worker], PeerLostError)
