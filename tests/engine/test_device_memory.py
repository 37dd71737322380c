"""What the devices have to give."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from loraplex.engine import device_memory
from loraplex.engine.device_memory import free_device_bytes


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_gpus_has_nothing_to_say() -> None:
    assert free_device_bytes() == ()


def test_every_gpu_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(*_: Any, **__: Any) -> Any:
        return subprocess.CompletedProcess([], 0, stdout="[3000, 2000, 4000]\n", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(device_memory, "_DRIVERS", (str(tmp_path),))
    assert free_device_bytes() == (3000, 2000, 4000)


def test_gpus_that_do_not_answer_in_time_say_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(command: list[str], *, timeout: float, **_: Any) -> Any:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(device_memory, "_DRIVERS", (str(tmp_path),))
    assert free_device_bytes() == ()


@pytest.mark.gpu
def test_asking_a_gpu_keeps_nothing_of_it() -> None:
    free = free_device_bytes()
    assert len(free) == torch.cuda.device_count()
    assert 0 < free[0] <= torch.cuda.get_device_properties(0).total_memory
