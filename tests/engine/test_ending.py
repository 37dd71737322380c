"""What the processes of a run say last, and with which exit code."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loraplex.engine.ending import ALIKE_S, ends_process
from loraplex.engine.errors import EngineError, PeerLostError
from loraplex.engine.watchdog import LAUNCHER
from loraplex.planner.errors import PlanError


class EndedError(BaseException):
    """Stands for the end of the process."""


class OutOfMemoryError(RuntimeError):
    """As torch's, which needs a GPU to come from."""


@pytest.mark.parametrize(
    ("error", "worker", "code", "said"),
    [
        (PlanError("no such plan"), "0", 2, "loraplex: error: worker 0: no such plan\n"),
        # A shard that one stage alone reads: nobody else could tell of it.
        (PlanError("no such file"), "1", 2, "loraplex: error: worker 1: no such file\n"),
        (PeerLostError("worker 0 is gone"), "1", 3, "loraplex: worker 0 is gone\n"),
        (EngineError("nothing moves"), "1", 1, "loraplex: nothing moves\n"),
        (
            OutOfMemoryError("of 80 GiB"),
            "1",
            1,
            "loraplex: worker 1: out of memory (of 80 GiB); lower microbatch_tokens",
        ),
        (MemoryError(), "0", 1, "loraplex: worker 0: out of memory (of the machine); lower microbatch_tokens"),
        (OSError(errno.ENOSPC, "full", "out/a"), "1", 1, "loraplex: worker 1: out/a could not be written (full); free"),
        (KeyboardInterrupt("SIGTERM"), "1", 130, "loraplex: worker 1 stopped (SIGTERM)\n"),
        (KeyboardInterrupt(), "1", 130, "loraplex: worker 1 stopped (SIGINT)\n"),
    ],
)
def test_what_goes_wrong_is_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    worker: str,
    code: int,
    said: str,
) -> None:
    def end(given: int) -> None:
        raise EndedError(given)

    monkeypatch.setenv("RANK", worker)
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(EndedError) as ended, ends_process():
        raise error
    assert ended.value.args == (code,)
    err = capsys.readouterr().err
    assert err.startswith(said) if said else err == ""
    assert err.count("\n") == (1 if said else 0)


def test_an_interrupt_in_the_midst_of_a_clean_up_that_then_fails_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(given: int) -> None:
        raise EndedError(given)

    def clean_up() -> None:
        try:
            raise KeyboardInterrupt("SIGINT")
        finally:
            raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(EndedError) as ended, ends_process():
        clean_up()
    assert (ended.value.args, capsys.readouterr().err) == ((130,), "loraplex: worker 0 stopped (SIGINT)\n")


@pytest.mark.parametrize(("worker", "waited"), [("0", []), ("1", [ALIKE_S])])
def test_what_all_workers_meet_is_told_by_the_first_unless_it_does_not_come(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], worker: str, waited: list[float]
) -> None:
    def end(given: int) -> None:
        raise EndedError(given)

    slept: list[float] = []
    monkeypatch.setenv("RANK", worker)
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(time, "sleep", slept.append)
    with pytest.raises(EndedError) as ended, ends_process(alike=True):
        raise PlanError("no such plan")
    assert (ended.value.args, capsys.readouterr().err) == ((2,), "loraplex: error: no such plan\n")
    # Meanwhile the launcher ends it.
    assert slept == waited


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyError("a bug"), OSError(errno.ECONNRESET, "reset")])
def test_what_nobody_foresaw_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, ends_process():
        raise error
    assert raised.value is error


def test_a_profile_stopped_while_torch_is_imported_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "import threading\nprint('importing', flush=True)\nthreading.Event().wait()\n", encoding="utf-8"
    )
    package = Path(__file__).resolve().parents[2] / ".pythonpath"
    process = subprocess.Popen(
        [sys.executable, "-m", "loraplex.engine.profile_main"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{package}", "RANK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "loraplex: worker 1 stopped (SIGINT)\n")


def test_a_worker_that_its_launcher_tells_of_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setenv(LAUNCHER, "1")
    with ends_process():
        raise KeyboardInterrupt("SIGINT")
    assert (codes, capsys.readouterr().err) == ([130], "")


LOST = """
import os, signal, time

class Dropped:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)

Dropped()
time.sleep(20)
"""
"""A torch.py: while it is imported, Ctrl-C comes in a destructor."""


def test_an_interrupt_that_a_destructor_swallows_comes_again(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(LOST, encoding="utf-8")
    package = Path(__file__).resolve().parents[2] / ".pythonpath"
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "loraplex.engine.profile_main"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{package}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "loraplex: worker 0 stopped (SIGINT)\n")
    assert time.monotonic() - begin < 19
