"""What only the strict transport promises: a send waits until its receive is posted, and what cannot go on is told."""

import threading
from contextlib import suppress

import pytest

from loraplex.engine.errors import EngineError, PeerLostError
from loraplex.engine.rendezvous import RendezvousTransport, Switchboard
from loraplex.engine.transport import Transport
from loraplex.tests.engine.transports import down, message, run_threads


def test_a_send_waits_until_its_receive_is_posted() -> None:
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


def test_a_message_of_another_size_is_refused() -> None:
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


def test_an_order_that_deadlocks_is_told_and_does_not_hang() -> None:
    board = Switchboard(2, timeout_s=0.1)
    with pytest.raises(EngineError, match=r"nothing moved for 0\.1 s while waiting for worker 1 to receive"):
        RendezvousTransport(board, 0).send(down(0), message(1))
