"""What the allocator holds around each action."""

from typing import Any

import pytest
import torch

from loraplex.engine.memory_recorder import Held, MemoryRecorder


def test_what_is_kept_and_what_passes() -> None:
    grown = Held(before=100, after=140, peak=200)
    assert (grown.kept(), grown.passing()) == (40, 60)
    shrunk = Held(before=140, after=100, peak=150)
    assert (shrunk.kept(), shrunk.passing()) == (-40, 10)


def test_each_action_reads_the_marks_at_its_own_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    books = iter([(10, 10), (11, 15), (30, 50), (31, 31), (20, 90)])
    now: list[tuple[int, int]] = [(0, 0)]
    cuda: Any = torch.cuda
    monkeypatch.setattr(cuda, "memory_allocated", lambda _: now[0][0])
    monkeypatch.setattr(cuda, "max_memory_allocated", lambda _: now[0][1])
    monkeypatch.setattr(cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(MemoryRecorder, "_device_clock", lambda self: self)
    recorder = MemoryRecorder(stage=0, device=torch.device("cuda"))
    monkeypatch.setattr("loraplex.engine.recorder.Recorder.mark", lambda self: 0)

    def mark() -> int:
        now[0] = next(books)
        return int(recorder.mark())  # type: ignore[arg-type]

    # A wait in between has marks of its own, which are not the action's.
    recorder.add("wait", "0F0", microbatch=0, start=mark(), end=0)
    recorder.add("compute", "0F0", microbatch=0, start=mark(), end=mark())
    recorder.add("compute", "0B0", microbatch=0, start=mark(), end=mark())
    assert recorder.held == [Held(before=11, after=30, peak=50), Held(before=31, after=20, peak=90)]


def test_on_a_cpu_nobody_counts() -> None:
    recorder = MemoryRecorder(stage=0)
    recorder.add("compute", "0F0", microbatch=0, start=recorder.mark(), end=recorder.mark())
    assert recorder.held == []
    assert len(recorder.compute_ms()) == 1
