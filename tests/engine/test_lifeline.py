"""A worker that is gone is missed by all others, whatever they wait for."""

import time
from collections.abc import Callable

from loraplex.engine.errors import PeerLostError
from loraplex.engine.gloo import open_gloo
from loraplex.engine.lifeline import Lifeline
from loraplex.engine.transport import Transport
from loraplex.tests.engine.transports import Work, run_processes


def run_watched(work: Work, *, num_stages: int) -> list[object]:
    """Over gloo, each worker with a lifeline, as over NCCL."""

    def connect(*, num_stages: int, num_replicas: int, on_lost: Callable[[PeerLostError], None]) -> Transport:
        transport = open_gloo(num_stages=num_stages, num_replicas=num_replicas, timeout_s=20)
        lifeline = Lifeline(on_lost=on_lost)
        leave = transport.close
        transport.close = lambda: (lifeline.leave(), leave())  # type: ignore[method-assign,assignment,func-returns-value]
        return transport

    return run_processes(work, connect=connect, num_stages=num_stages, num_replicas=1)


def test_who_leaves_in_good_order_is_not_missed() -> None:
    assert run_watched(lambda transport: time.sleep(0.2 * transport.worker), num_stages=3) == [None, None, None]


def test_a_barrier_waits_for_longer_than_a_message_may_take() -> None:
    def connect(*, num_stages: int, num_replicas: int, on_lost: Callable[[PeerLostError], None]) -> Transport:
        return open_gloo(num_stages=num_stages, num_replicas=num_replicas, timeout_s=1)

    def work(transport: Transport) -> None:
        # As a replica that looks at its validation samples while the others have nothing to do.
        time.sleep(2.5 * transport.worker)
        transport.barrier()

    assert run_processes(work, connect=connect, num_stages=2, num_replicas=1) == [None, None]


def test_a_lost_worker_ends_all_others_whatever_they_wait_for() -> None:
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
