"""Spans on the clock of worker 0, and that clock itself."""

import threading

import torch

from loraplex.engine import clock
from loraplex.engine.recorder import Recorder, now_ns
from loraplex.engine.rendezvous import RendezvousTransport, Switchboard
from loraplex.traces.timeline import Span


def test_spans_are_shifted_to_worker_0_and_count_from_the_origin() -> None:
    recorder = Recorder(stage=1, replica=2, clock_offset_ns=500_000)
    recorder.add("compute", "1F0", microbatch=0, start_ns=10_000_000, end_ns=12_000_000)
    recorder.add("transfer", "1B0", microbatch=0, start_ns=13_000_000, end_ns=13_250_000, num_bytes=64)
    assert recorder.spans(origin_ns=10_000_000) == (
        Span(replica=2, stage=1, kind="compute", action="1F0", microbatch=0, start_ms=0.5, end_ms=2.5),
        Span(replica=2, stage=1, kind="transfer", action="1B0", microbatch=0, start_ms=3.5, end_ms=3.75, bytes=64),
    )


def offsets(monkeypatch, skew_ns: dict[int, int]) -> list[int]:  # type: ignore[no-untyped-def]
    """What each of three threads finds, when their clocks run ahead by `skew_ns`."""
    torch.set_num_threads(1)
    board = Switchboard(3, timeout_s=20)
    found = [0, 0, 0]
    skew = threading.local()
    monkeypatch.setattr(clock, "now_ns", lambda: now_ns() + skew.ns)

    def work(worker: int) -> None:
        skew.ns = skew_ns[worker]
        found[worker] = clock.clock_offset_ns(RendezvousTransport(board, worker), num_workers=3)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_clocks_of_one_machine_have_no_offset(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    assert offsets(monkeypatch, {0: 0, 1: 0, 2: 0}) == [0, 0, 0]


def test_a_clock_that_is_seconds_off_is_found_out_to_a_fraction(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    first, second, third = offsets(monkeypatch, {0: 0, 1: 5_000_000_000, 2: -7_000_000_000})
    assert first == 0
    # Far below the skew; how far depends on the machine's load.
    assert abs(second + 5_000_000_000) < 500_000_000
    assert abs(third - 7_000_000_000) < 500_000_000
