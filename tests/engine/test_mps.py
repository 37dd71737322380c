"""The multi-process service is started for what runs inside, and stopped; where it cannot be, that is said."""

import os
from pathlib import Path

import pytest

from loraplex.engine.mps import mps

# Writes down how it was called, where its sockets go, and what it reads.
DAEMON = """#!/bin/sh
if [ "$1" = -d ]; then echo "start $CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" >> {log}; else cat >> {log}; fi
[ -d "$CUDA_MPS_PIPE_DIRECTORY" ] && [ -d "$CUDA_MPS_LOG_DIRECTORY" ] || exit 9
exit {code}
"""


def daemon(folder: Path, monkeypatch: pytest.MonkeyPatch, *, code: int) -> Path:
    """Put one on the path; what it was told."""
    log = folder / "told"
    path = folder / "nvidia-cuda-mps-control"
    path.write_text(DAEMON.format(log=log, code=code))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return log


def test_processes_started_inside_get_their_share_and_the_daemon_is_told_to_quit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = daemon(tmp_path, monkeypatch, code=0)
    monkeypatch.setenv("CUDA_MPS_LOG_DIRECTORY", "/elsewhere")
    with mps(12.5) as state:
        assert (state.thread_percentage, state.why_not) == (12.5, "")
        assert os.environ["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "12.5"
        pipe = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
        assert pipe.is_dir()
    assert log.read_text() == "start 12.5\nquit\n"
    assert not pipe.exists()
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert os.environ["CUDA_MPS_LOG_DIRECTORY"] == "/elsewhere"


def test_a_daemon_that_does_not_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = daemon(tmp_path, monkeypatch, code=1)
    with mps(25) as state:
        assert (state.thread_percentage, state.why_not) == (None, "nvidia-cuda-mps-control: exit 1")
    assert log.read_text() == "start 25\n"


def test_where_it_is_not_installed_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with mps(12) as state:
        assert (state.thread_percentage, state.why_not) == (None, "nvidia-cuda-mps-control is not installed")
        assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ


def test_clients_count_the_gpus_of_a_service_that_sees_some_of_them_from_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon(tmp_path, monkeypatch, code=0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with mps(25):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"
