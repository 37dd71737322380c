"""What every transport promises, asked of each: threads over rendezvous, processes over gloo, staged and NCCL.

Tests of a GPU fork too, which CUDA forgives only while this process has not started it: run this file alone there,
`pytest -m gpu tests/engine/test_transport.py`.
"""

import datetime
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import pytest
import torch
from torch import Tensor

from loraplex.engine.connect import shares_gpu
from loraplex.engine.devices import choose_device
from loraplex.engine.errors import EngineError, PeerLostError
from loraplex.engine.gloo import MAX_OUTSTANDING_SENDS, open_gloo
from loraplex.engine.lifeline import Lifeline
from loraplex.engine.nccl import NcclTransport
from loraplex.engine.rendezvous import RendezvousTransport, Switchboard
from loraplex.engine.staged import StagedTransport
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


class Connection(Protocol):
    """Makes a worker's transport inside its process; `on_lost` ends that process where no call can raise."""

    def __call__(
        self, *, num_stages: int, num_replicas: int, on_lost: Callable[[PeerLostError], None]
    ) -> Transport: ...


def run_processes(work: Work, *, connect: Connection, num_stages: int, num_replicas: int) -> list[object]:
    """Forked processes, so that `work` may be any function of a test. Who returns "gone" goes without a word."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    num_workers = num_stages * num_replicas
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(num_workers)]

    def body(worker: int) -> None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"RANK": str(worker), "WORLD_SIZE": str(num_workers)}
        os.environ |= {"LOCAL_RANK": str(worker), "LOCAL_WORLD_SIZE": str(num_workers)}
        torch.set_num_threads(1)

        def end(result: object) -> None:
            pipes[worker][1].send(result)
            os._exit(0)

        try:
            transport = connect(num_stages=num_stages, num_replicas=num_replicas, on_lost=end)
            result: object = work(transport)
            if result == "gone" or isinstance(result, Exception):
                end(result)
            transport.close()
        except Exception as error:
            result = error
        end(result)

    processes = [context.Process(target=body, args=(worker,)) for worker in range(num_workers)]
    for process in processes:
        process.start()
    results: list[object] = []
    for (receiver, _), process in zip(pipes, processes, strict=True):
        results.append(receiver.recv() if receiver.poll(60) else None)
        process.join(10)
    return results


def run_gloo(work: Work, *, num_stages: int = 2, num_replicas: int = 1) -> list[object]:
    def connect(*, num_stages: int, num_replicas: int, on_lost: object) -> Transport:
        return open_gloo(num_stages=num_stages, num_replicas=num_replicas, timeout_s=20)

    return run_processes(work, connect=connect, num_stages=num_stages, num_replicas=num_replicas)


def run_staged(work: Work, *, num_stages: int = 2, num_replicas: int = 1) -> list[object]:
    """On a CPU: the threads and the order, without pinned memory."""

    def connect(*, num_stages: int, num_replicas: int, on_lost: object) -> Transport:
        host = open_gloo(num_stages=num_stages, num_replicas=num_replicas, timeout_s=20)
        return StagedTransport(host, device=torch.device("cpu"))

    return run_processes(work, connect=connect, num_stages=num_stages, num_replicas=num_replicas)


def run_staged_gpu(work: Work, *, num_stages: int = 2, num_replicas: int = 1) -> list[object]:
    """All workers on GPU 0."""
    cuda_has_not_started()

    def connect(*, num_stages: int, num_replicas: int, on_lost: object) -> Transport:
        device = torch.device("cuda", 0)
        torch.cuda.set_device(device)
        host = open_gloo(num_stages=num_stages, num_replicas=num_replicas, timeout_s=20)
        assert shares_gpu(host, device, num_workers=num_stages * num_replicas)
        return StagedTransport(host, device=device)

    return run_processes(work, connect=connect, num_stages=num_stages, num_replicas=num_replicas)


def run_nccl(work: Work, *, num_stages: int = 2, num_replicas: int = 1) -> list[object]:
    """A GPU for each worker."""
    cuda_has_not_started()
    num_workers = num_stages * num_replicas
    if torch.cuda.device_count() < num_workers:
        pytest.skip(f"{num_workers} workers over NCCL need as many GPUs; here are {torch.cuda.device_count()}")

    def connect(*, num_stages: int, num_replicas: int, on_lost: Callable[[PeerLostError], None]) -> Transport:
        device = choose_device("cuda")
        host = open_gloo(num_stages=num_stages, num_replicas=num_replicas, timeout_s=20)
        assert not shares_gpu(host, device, num_workers=num_workers)
        return NcclTransport(
            host,
            num_stages=num_stages,
            num_replicas=num_replicas,
            device=device,
            timeout=datetime.timedelta(seconds=60),
            on_lost=on_lost,
        )

    return run_processes(work, connect=connect, num_stages=num_stages, num_replicas=num_replicas)


def cuda_has_not_started() -> None:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        pytest.fail("CUDA has started in this process, so its forks cannot use it; run this file alone")


@pytest.fixture(
    params=[
        run_threads,
        run_gloo,
        run_staged,
        pytest.param(run_staged_gpu, marks=pytest.mark.gpu),
        pytest.param(run_nccl, marks=pytest.mark.gpu),
    ],
    ids=["rendezvous", "gloo", "staged", "staged-gpu", "nccl"],
)
def run(request: pytest.FixtureRequest) -> Run:
    chosen: Run = request.param
    return chosen


def test_messages_of_an_edge_arrive_whole_and_in_order(run: Run) -> None:
    sizes = [1, 7, 100_000, 3, 64]

    def work(transport: Transport) -> object:
        if transport.worker == 0:
            for number, size in enumerate(sizes):
                transport.send(down(0), torch.full((size,), number, dtype=torch.uint8, device=transport.device))
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
                transport.send(down(0), message(number).to(transport.device))
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
        transport.send(mine, torch.full((200_000,), transport.worker, dtype=torch.uint8, device=transport.device))
        content = receive.wait()
        transport.finish()
        return sorted(set(content.tolist()))

    assert run(work) == [[1], [0]]


def test_many_messages_with_one_receive_posted_ahead(run: Run) -> None:
    count = 10 * MAX_OUTSTANDING_SENDS

    def work(transport: Transport) -> object:
        if transport.worker == 0:
            for number in range(count):
                transport.send(down(0), message(number).to(transport.device))
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
        content = (
            message(5).to(transport.device) if worker == 0 else transport.post(down(worker - 1), 1).wait() + worker
        )
        if worker < 2:
            transport.send(down(worker), content)
        transport.finish()
        return content.item()

    assert run(work, num_stages=3) == [5, 6, 8]


def test_reduce_adds_over_the_named_workers_with_the_same_bits_for_all(run: Run) -> None:
    # Two replicas of two stages: workers 0 and 2 hold stage 0, workers 1 and 3 stage 1.
    def work(transport: Transport) -> object:
        peers = (0, 2) if transport.worker % 2 == 0 else (1, 3)
        tensor = torch.tensor([0.1, 1e-8], device=transport.device) * (transport.worker + 1)
        transport.reduce(tensor, workers=peers)
        again = torch.tensor([1.0], device=transport.device)
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
            transport.send(up(1), message(9).to(transport.device))
            transport.finish()
        transport.barrier()
        if transport.worker == 0:
            received = receive.wait().item()
        transport.barrier()
        return received

    assert run(work) == [9, None]


def test_two_replicas_of_one_stage_add_up_whatever_is_where(run: Run) -> None:
    def work(transport: Transport) -> object:
        found = []
        for device in (transport.device, torch.device("cpu")):
            tensor = torch.arange(5.0, device=device) + transport.worker
            transport.reduce(tensor, workers=(0, 1))
            found.append((tensor.device == device, tensor.tolist()))
        return found

    expected = [(True, [1.0, 3.0, 5.0, 7.0, 9.0])] * 2
    assert run(work, num_stages=1, num_replicas=2) == [expected, expected]


def test_the_host_reaches_every_worker_and_its_messages_stay_there(run: Run) -> None:
    # As the clocks are compared: between worker 0 and any other, neighbour or not.
    def work(transport: Transport) -> object:
        host = transport.host
        if transport.worker == 0:
            return host.post(Edge(source=2, target=0, direction=Direction.UP), 1).wait().item()
        if transport.worker == 2:
            host.send(Edge(source=2, target=0, direction=Direction.UP), message(4))
        host.finish()
        return str(host.device)

    assert run(work, num_stages=3) == [4, "cpu", "cpu"]


def test_a_message_may_be_dropped_by_its_sender_at_once_and_used_by_later_work(run: Run) -> None:
    # On a GPU nobody has waited for anything when the sender's memory is free for the next message.
    def work(transport: Transport) -> object:
        device, size, count = transport.device, 1_000_000, 40
        if transport.worker == 0:
            for number in range(count):
                made = torch.zeros(size, dtype=torch.uint8, device=device)
                for _ in range(number):
                    made += 1
                transport.send(down(0), made)
                del made
            transport.finish()
            return None
        sums, posted = torch.zeros(count, dtype=torch.int64, device=device), transport.post(down(0), size)
        for place in range(count):
            ahead = transport.post(down(0), size) if place + 1 < count else posted
            sums[place] = posted.wait().sum()
            posted = ahead
        return sums.tolist()

    assert run(work)[1] == [1_000_000 * number for number in range(40)]


def test_a_worker_in_the_middle_posts_ahead_of_what_it_sends(run: Run) -> None:
    # With receives and sends of one direction on one stream, the posted receive would stand in the way of the send.
    def work(transport: Transport) -> object:
        worker, count = transport.worker, 12
        if worker == 1:
            posted = transport.post(down(0), 8)
        seen = []
        for number in range(count):
            content = torch.full((8,), number, dtype=torch.uint8, device=transport.device)
            if worker == 1:
                content = posted.wait()
                posted = transport.post(down(0), 8) if number + 1 < count else posted
            if worker == 2:
                content = transport.post(down(1), 8).wait()
                transport.send(up(2), content + 1)
            else:
                transport.send(down(worker), content)
                content = transport.post(up(worker + 1), 8).wait()
                if worker == 1:
                    transport.send(up(1), content + 1)
            seen.append(content[0].item())
        transport.finish()
        return seen

    assert run(work, num_stages=3) == [
        [number + 2 for number in range(12)],
        [number + 1 for number in range(12)],
        list(range(12)),
    ]


@pytest.mark.parametrize("waits_to", ["receive", "send"])
def test_who_waits_for_a_lost_peer_hears_of_it(run: Run, waits_to: str) -> None:
    def work(transport: Transport) -> object:
        if transport.worker == 1:
            return "gone"
        if waits_to == "receive":
            return transport.post(up(1), 1).wait().item()
        for _ in range(1000):
            transport.send(down(0), torch.zeros(100_000, dtype=torch.uint8, device=transport.device))
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


def run_watched(work: Work, *, num_stages: int) -> list[object]:
    """Over gloo, each worker with a lifeline, as over NCCL."""

    def connect(*, num_stages: int, num_replicas: int, on_lost: Callable[[PeerLostError], None]) -> Transport:
        transport = open_gloo(num_stages=num_stages, num_replicas=num_replicas, timeout_s=20)
        lifeline = Lifeline(on_lost=on_lost)
        leave = transport.close
        transport.close = lambda: (lifeline.leave(), leave())  # type: ignore[method-assign,assignment,func-returns-value]
        return transport

    return run_processes(work, connect=connect, num_stages=num_stages, num_replicas=1)


def test_only_lifeline_who_leaves_in_good_order_is_not_missed() -> None:
    assert run_watched(lambda transport: time.sleep(0.2 * transport.worker), num_stages=3) == [None, None, None]


def test_only_lifeline_a_lost_worker_ends_all_others_whatever_they_wait_for() -> None:
    def work(transport: Transport) -> object:
        if transport.worker == 2:
            return "gone"
        # As a main thread that waits for its GPU: nothing here can raise.
        time.sleep(30)
        return None

    first, second, third = run_watched(work, num_stages=3)
    assert third == "gone"
    assert str(second) == "worker 2 is gone (its process has ended)"
    assert str(first) == "worker 1 is gone (its process has ended)"
    assert isinstance(first, PeerLostError)
