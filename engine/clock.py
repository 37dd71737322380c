"""How far each worker's monotonic clock is from worker 0's, by exchanging clock readings over the transport."""

import torch

from .recorder import now_ns
from .transport import Direction, Edge, Transport

_ROUNDS = 16


def clock_offset_ns(transport: Transport, *, num_workers: int) -> int:
    """What to add to this worker's clock to get worker 0's. All workers call it together.

    Of 16 round trips the fastest counts: worker 0's reading is taken to lie in the middle of it. An offset within half
    a round trip is no offset: processes of one machine share the clock. (Cristian, Distributed Computing 3, 1989.)
    """
    offset, host = 0, transport.host
    for peer in range(1, num_workers):
        if host.worker == 0:
            _answer(host, peer)
        elif host.worker == peer:
            offset = _ask(host)
        host.barrier()
    return offset


def _ask(transport: Transport) -> int:
    to_zero = Edge(source=transport.worker, target=0, direction=Direction.UP)
    from_zero = Edge(source=0, target=transport.worker, direction=Direction.DOWN)
    trips = []
    for _ in range(_ROUNDS):
        receive = transport.post(from_zero, 8)
        sent_ns = now_ns()
        transport.send(to_zero, torch.zeros(8, dtype=torch.uint8))
        reading_ns = int(receive.wait().view(torch.int64).item())
        trip_ns = now_ns() - sent_ns
        trips.append((trip_ns, reading_ns - (sent_ns + trip_ns // 2)))
    trip_ns, offset = min(trips)
    return 0 if abs(offset) <= trip_ns // 2 else offset


def _answer(transport: Transport, peer: int) -> None:
    to_peer = Edge(source=0, target=peer, direction=Direction.DOWN)
    from_peer = Edge(source=peer, target=0, direction=Direction.UP)
    for _ in range(_ROUNDS):
        transport.post(from_peer, 8).wait()
        transport.send(to_peer, torch.tensor([now_ns()], dtype=torch.int64).view(torch.uint8))
    transport.finish()
