"""What every transport promises, asked of each: threads over rendezvous, processes over gloo, staged, peer and NCCL.

Tests of a GPU fork too, which CUDA forgives only while this process has not started it: run this file alone there,
`pytest -m gpu tests/engine/test_transport.py`.
"""

import pytest
import torch

from loraplex.engine.errors import PeerLostError
from loraplex.engine.gloo import MAX_OUTSTANDING_SENDS
from loraplex.engine.transport import Direction, Edge, Transport
from loraplex.tests.engine.transports import (
    Run,
    down,
    message,
    run_gloo,
    run_nccl,
    run_nccl_host,
    run_peer,
    run_peer_gpu,
    run_staged,
    run_staged_gpu,
    run_threads,
    up,
)


@pytest.fixture(
    params=[
        run_threads,
        run_gloo,
        run_staged,
        run_peer,
        run_nccl_host,
        pytest.param(run_staged_gpu, marks=pytest.mark.gpu),
        pytest.param(run_peer_gpu, marks=pytest.mark.gpu),
        pytest.param(run_nccl, marks=pytest.mark.gpu),
    ],
    ids=["rendezvous", "gloo", "staged", "peer", "nccl-host", "staged-gpu", "peer-gpu", "nccl"],
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


def test_the_host_adds_up_over_all_workers(run: Run) -> None:
    # Whatever stages agree on goes this way: over NCCL no communicator of GPUs joins them.
    def work(transport: Transport) -> object:
        numbers = torch.tensor([1.0, transport.worker])
        transport.host.reduce(numbers, workers=range(3))
        return numbers.tolist()

    assert run(work, num_stages=3) == [[3.0, 3.0]] * 3


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
