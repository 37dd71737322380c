"""What every transport promises, asked of each: threads over rendezvous, processes over gloo."""

import multiprocessing
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor

from loraplex.engine.errors import EngineError, PeerLostError
from loraplex.engine.gloo import MAX_OUTSTANDING_SENDS, open_gloo
from loraplex.engine.rendezvous import RendezvousTransport, Switchboard
from loraplex.engine.transport import Direction, Edge, Transport

Work = Callable[[Transport], object]
Run = Callable[..., list[object]]
"""(what each worker does, number of stages, number of replicas) -> what each returned, or the error it raised."""


def down(source: int) -> Edge:
    return Edge(source=source, target=source + 1, direction=Direction.DOWN)


def up(source: int) -> Edge:
    return Edge(source=source, target=source - 1, direction=Direction.UP)


def message(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8)


def run_threads(work: Work, *, num_stages: int = 2, num_replicas: int = 1) -> list[object]:
    num_workers = num_stages * num_replicas
    board = Switchboard(num_workers, timeout_s=20)
    results: list[object] = [None] * num_workers

    def body(worker: int) -> None:
        try:
            results[worker] = work(RendezvousTransport(board, worker))
        except Exception as error:
            results[worker] = error
        board.leave(worker, "it ended")

    threads = [threading.Thread(target=body, args=(worker,)) for worker in range(num_workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def run_gloo(work: Work, *, num_stages: int = 2, num_replicas: int = 1) -> list[object]:
    """Forked processes, so that `work` may be any function of a test."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    num_workers = num_stages * num_replicas
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(num_workers)]

    def body(worker: int) -> None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"RANK": str(worker), "WORLD_SIZE": str(num_workers)}
        torch.set_num_threads(1)
        try:
            result: Any = work(open_gloo(num_stages=num_stages, num_replicas=num_replicas, timeout_s=20))
        except Exception as error:
            result = error
        pipes[worker][1].send(result)
        os._exit(0)

    processes = [context.Process(target=body, args=(worker,)) for worker in range(num_workers)]
    for process in processes:
        process.start()
    results: list[object] = []
    for (receiver, _), process in zip(pipes, processes, strict=True):
        results.append(receiver.recv() if receiver.poll(30) else None)
        process.join(10)
    return results


@pytest.fixture(params=[run_threads, run_gloo], ids=["rendezvous", "gloo"])
def run(request: pytest.FixtureRequest) -> Run:
    chosen: Run = request.param
    return chosen


def test_messages_of_an_edge_arrive_whole_and_in_order(run: Run) -> None:
    sizes = [1, 7, 100_000, 3, 64]

    def work(transport: Transport) -> object:
        if transport.worker == 0:
            for number, size in enumerate(sizes):
                transport.send(down(0), torch.full((size,), number, dtype=torch.uint8))
            transport.finish()
            return None
        received = []
        for size in sizes:
            content = transport.post(down(0), size).wait()
            received.append((len(content), sorted(set(content.tolist()))))
        return received

    assert run(work)[1] == [(size, [number]) for number, size in enumerate(sizes)]


def test_receives_posted_ahead_are_filled_in_order(run: Run) -> None:
    def work(transport: Transport) -> object:
        if transport.worker == 0:
            for number in range(3):
                transport.send(down(0), message(number))
            transport.finish()
            return None
        posted = [transport.post(down(0), 1) for _ in range(3)]
        # Waiting out of order does not change what came where.
        return [posted[place].wait().item() for place in (2, 0, 1)]

    assert run(work)[1] == [2, 0, 1]


def test_the_two_directions_do_not_wait_for_each_other(run: Run) -> None:
    # Both first send and then receive: over one common channel this could not go on.
    def work(transport: Transport) -> object:
        mine, other = (down(0), up(1)) if transport.worker == 0 else (up(1), down(0))
        receive = transport.post(other, 200_000)
        transport.send(mine, torch.full((200_000,), transport.worker, dtype=torch.uint8))
        content = receive.wait()
        transport.finish()
        return sorted(set(content.tolist()))

    assert run(work) == [[1], [0]]


def test_many_messages_with_one_receive_posted_ahead(run: Run) -> None:
    count = 10 * MAX_OUTSTANDING_SENDS

    def work(transport: Transport) -> object:
        if transport.worker == 0:
            for number in range(count):
                transport.send(down(0), message(number))
            transport.finish()
            return None
        received, posted = [], transport.post(down(0), 1)
        for place in range(count):
            ahead = transport.post(down(0), 1) if place + 1 < count else None
            received.append(posted.wait().item())
            posted = ahead or posted
        return received

    assert run(work)[1] == list(range(count))


def test_a_chain_of_three_passes_on(run: Run) -> None:
    def work(transport: Transport) -> object:
        worker = transport.worker
        content = message(5) if worker == 0 else transport.post(down(worker - 1), 1).wait() + worker
        if worker < 2:
            transport.send(down(worker), content)
        transport.finish()
        return content.item()

    assert run(work, num_stages=3) == [5, 6, 8]


def test_reduce_adds_over_the_named_workers_with_the_same_bits_for_all(run: Run) -> None:
    # Two replicas of two stages: workers 0 and 2 hold stage 0, workers 1 and 3 stage 1.
    def work(transport: Transport) -> object:
        peers = (0, 2) if transport.worker % 2 == 0 else (1, 3)
        tensor = torch.tensor([0.1, 1e-8]) * (transport.worker + 1)
        transport.reduce(tensor, workers=peers)
        again = torch.tensor([1.0])
        transport.reduce(again, workers=peers)
        return tensor.tolist(), again.item()

    results = run(work, num_stages=2, num_replicas=2)
    assert results[0] == results[2]
    assert results[1] == results[3]
    first, second = torch.tensor([0.1, 1e-8]), torch.tensor([0.1, 1e-8])
    assert results[0] == ((first * 1 + second * 3).tolist(), 2.0)


def test_a_barrier_lets_nobody_through_before_all_are_there(run: Run) -> None:
    def work(transport: Transport) -> object:
        received = None
        if transport.worker == 0:
            receive = transport.post(up(1), 1)
        if transport.worker == 1:
            transport.send(up(1), message(9))
            transport.finish()
        transport.barrier()
        if transport.worker == 0:
            received = receive.wait().item()
        transport.barrier()
        return received

    assert run(work) == [9, None]


@pytest.mark.parametrize("waits_to", ["receive", "send"])
def test_who_waits_for_a_lost_peer_hears_of_it(run: Run, waits_to: str) -> None:
    def work(transport: Transport) -> object:
        if transport.worker == 1:
            return "gone"
        if waits_to == "receive":
            return transport.post(up(1), 1).wait()
        for _ in range(1000):
            transport.send(down(0), torch.zeros(100_000, dtype=torch.uint8))
        transport.finish()
        return None

    results = run(work)
    assert results[1] == "gone"
    assert isinstance(results[0], PeerLostError)
    assert str(results[0]).startswith("worker 1 is gone (")


def test_only_rendezvous_a_send_waits_until_its_receive_is_posted() -> None:
    order: list[str] = []
    sent = threading.Event()

    def work(transport: Transport) -> object:
        if transport.worker == 0:
            transport.send(down(0), message(1))
            order.append("sent")
            sent.set()
            return None
        assert not sent.wait(0.2)
        order.append("posting")
        transport.post(down(0), 1)
        return sent.wait(5)

    assert run_threads(work) == [None, True]
    assert order == ["posting", "sent"]


def test_only_rendezvous_a_message_of_another_size_is_refused() -> None:
    def work(transport: Transport) -> object:
        if transport.worker == 0:
            transport.send(down(0), message(1, 2))
        else:
            with suppress(PeerLostError):
                transport.post(down(0), 3).wait()
        return None

    error = run_threads(work)[0]
    assert isinstance(error, EngineError)
    assert "a message of 2 bytes meets a buffer of 3" in str(error)


def test_only_rendezvous_an_order_that_deadlocks_is_told_and_does_not_hang() -> None:
    board = Switchboard(2, timeout_s=0.1)
    with pytest.raises(EngineError, match=r"nothing moved for 0\.1 s while waiting for worker 1 to receive"):
        RendezvousTransport(board, 0).send(down(0), message(1))
