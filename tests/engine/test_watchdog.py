"""A worker that is stuck in C code ends all the same."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loraplex.engine.watchdog import LAUNCHER

ROOT = Path(__file__).resolve().parents[2]
# A mutex that is locked twice: unlike a sleep, no signal wakes the main thread.
STUCK = """
import ctypes, sys, threading
sys.path.insert(0, {path!r})
from loraplex.engine.watchdog import start_watchdog
start_watchdog(lambda: "pp_rank 5 at 5F3, microbatch 3")
mutex = ctypes.create_string_buffer(64)
libc = ctypes.CDLL(None)
libc.pthread_mutex_lock(mutex)
threading.Timer(0.5, print, ["stuck"], {{"flush": True}}).start()
libc.pthread_mutex_lock(mutex)
"""
# The parent starts the stuck child and ends at once.
ORPHAN = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {stuck!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
"""


def stuck() -> str:
    return STUCK.format(path=str(ROOT / ".pythonpath"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stuck_worker_ends_when_told_and_says_where_it_was(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", stuck()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "stuck\n"
    process.send_signal(number)
    begin = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - begin < 10
    assert process.returncode == 130
    assert err == f"loraplex: pp_rank 5 at 5F3, microbatch 3: told to stop by {number.name}\n"


# An interrupt that comes while an object is taken down is lost; another object's own fault is still told of.
TAKEN_DOWN = """
import os, signal, sys, threading
sys.path.insert(0, {path!r})
from loraplex.engine.watchdog import start_watchdog
start_watchdog(lambda: "pp_rank 5 at 5F3, microbatch 3")
class Interrupted:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10): pass
class Faulty:
    def __del__(self):
        raise ValueError("its own fault")
Faulty(); Interrupted()
threading.Event().wait()
"""


def test_an_interrupt_lost_in_a_destructor_ends_the_worker_without_a_traceback() -> None:
    script = TAKEN_DOWN.format(path=str(ROOT / ".pythonpath"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 130
    assert done.stderr.endswith("loraplex: pp_rank 5 at 5F3, microbatch 3: told to stop by SIGINT\n")
    assert "KeyboardInterrupt" not in done.stderr
    assert "ValueError: its own fault" in done.stderr


def test_a_worker_whose_launcher_was_gone_before_it_looked_ends_as_well() -> None:
    nobody = subprocess.Popen([sys.executable, "-c", ""])
    nobody.wait()
    done = subprocess.run(
        [sys.executable, "-c", stuck()],
        capture_output=True,
        text=True,
        timeout=30,
        env=os.environ | {LAUNCHER: str(nobody.pid)},
    )
    assert (done.returncode, done.stderr) == (130, "loraplex: pp_rank 5 at 5F3, microbatch 3: its launcher is gone\n")


def test_a_worker_without_its_launcher_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN.format(stuck=stuck())], capture_output=True, text=True, check=True, timeout=30
    )
    # It is nobody's child now, so it may stay as a zombie; what it wrote went to the pipe that we have read to its end.
    assert done.stdout.strip().isdigit()
    assert done.stderr == "loraplex: pp_rank 5 at 5F3, microbatch 3: its launcher is gone\n"
