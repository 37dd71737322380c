"""What the devices have to give."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from loraplex.engine import device_memory
from loraplex.engine.device_memory import forget_peak, free_gpus, gpus_of_all_machines, peak_bytes
from loraplex.planner.gpus import Gpus


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_gpus_has_nothing_to_say() -> None:
    assert free_gpus() is None


def test_every_gpu_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(*_: Any, **__: Any) -> Any:
        return subprocess.CompletedProcess([], 0, stdout="[3000, 2000, 4000]\n", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(device_memory, "_DRIVERS", (str(tmp_path),))
    assert free_gpus() == Gpus(free_bytes=(3000, 2000, 4000))


def test_gpus_that_do_not_answer_in_time_say_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(command: list[str], *, timeout: float, **_: Any) -> Any:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(device_memory, "_DRIVERS", (str(tmp_path),))
    assert free_gpus() is None


def test_machines_are_alike_and_each_has_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two machines with two GPUs and four workers each.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (60, 80))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    gpus = gpus_of_all_machines(torch.device("cuda", 0))
    assert (gpus.free_bytes, gpus.num_sharing(8), gpus.share_bytes(8)) == ((60, 60, 60, 60), 2, 30.0)


def test_a_peak_is_that_since_it_was_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {torch.device("cuda", 1): 50}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peaks.update({device: 20}))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", peaks.__getitem__)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 25)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (40, 80))
    assert peak_bytes(torch.device("cuda", 1), num_processes=1) == 50 + 15
    forget_peak(torch.device("cuda", 1))
    assert peak_bytes(torch.device("cuda", 1), num_processes=1) == 20 + 15
    forget_peak(torch.device("cpu"))
    assert peak_bytes(torch.device("cpu"), num_processes=1) is None


@pytest.mark.gpu
def test_asking_a_gpu_keeps_nothing_of_it() -> None:
    gpus = free_gpus()
    assert gpus is not None
    assert len(gpus.free_bytes) == torch.cuda.device_count()
    assert 0 < gpus.free_bytes[0] <= torch.cuda.get_device_properties(0).total_memory
