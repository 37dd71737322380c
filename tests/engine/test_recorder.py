"""Spans on the clock of worker 0, and that clock itself."""

import threading
from itertools import pairwise

import pytest
import torch

from loraplex.engine import clock
from loraplex.engine.recorder import Later, Recorder, now_ns
from loraplex.engine.rendezvous import RendezvousTransport, Switchboard
from loraplex.traces.timeline import Span


def test_spans_are_shifted_to_worker_0_and_count_from_the_origin() -> None:
    recorder = Recorder(stage=1, replica=2, clock_offset_ns=500_000)
    recorder.add("compute", "1F0", microbatch=0, start=10_000_000, end=12_000_000)
    recorder.add("transfer", "1B0", microbatch=0, start=13_000_000, end=13_250_000, num_bytes=64)
    assert recorder.spans(origin_ns=10_000_000) == (
        Span(replica=2, stage=1, kind="compute", action="1F0", microbatch=0, start_ms=0.5, end_ms=2.5),
        Span(replica=2, stage=1, kind="transfer", action="1B0", microbatch=0, start_ms=3.5, end_ms=3.75, bytes=64),
    )


def test_a_span_whose_end_another_thread_tells_keeps_its_place() -> None:
    recorder, left = Recorder(stage=0), Later()
    recorder.add("transfer", "0F0", microbatch=0, start=1_000_000, end=left)
    recorder.add("compute", "0F1", microbatch=1, start=2_000_000, end=3_000_000)
    assert recorder.rows == []
    threading.Timer(0.05, left.tell, [5_000_000]).start()
    assert [(span.action, span.start_ms, span.end_ms) for span in recorder.spans(origin_ns=0)] == [
        ("0F0", 1.0, 5.0),
        ("0F1", 2.0, 3.0),
    ]
    assert recorder.compute_ms() == [1.0]


@pytest.mark.gpu
def test_on_a_gpu_spans_last_as_long_as_the_kernels_and_lie_on_the_hosts_clock() -> None:
    recorder = Recorder(stage=0, device=torch.device("cuda"))
    weight = torch.randn(4096, 4096, device="cuda")
    recorder.mark()
    torch.cuda.synchronize()
    begin_ns = now_ns()
    for action in range(300):
        start = recorder.mark()
        for _ in range(4):
            weight = (weight @ weight).clamp(-1, 1)
        recorder.add("compute", f"0F{action}", microbatch=action, start=start, end=recorder.mark())
    launched_ns = now_ns()
    torch.cuda.synchronize()
    end_ns = now_ns()
    spans = recorder.spans(origin_ns=begin_ns)
    assert [span.microbatch for span in spans] == list(range(300))
    assert launched_ns < end_ns
    # To within what an anchor is worth, plus what the clocks drift apart before the second one.
    slack_ms = 0.5
    assert spans[0].start_ms > -slack_ms
    assert spans[-1].end_ms < (end_ns - begin_ns) / 1e6 + slack_ms
    assert all(left.end_ms <= right.start_ms + 0.05 for left, right in pairwise(spans))
    # Nothing but these kernels ran, so they make up the time.
    assert sum(recorder.compute_ms()) > 0.8 * (end_ns - begin_ns) / 1e6


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
