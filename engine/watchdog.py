"""Ends a worker within seconds when it is told to stop or loses its launcher, even inside a blocking receive.

Python runs its signal handlers only between byte codes, and a worker that waits in gloo may not come to the next one.
The C-level handler, however, writes every signal's number to a wake-up socket at once; a thread reads it.
"""

import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable

from .errors import STOPPED

LAUNCHER = "LORAPLEX_LAUNCHER"
"""Environment variable with the process id of who starts workers: one that is killed while they still import torch has
been gone for long when they first look who their parent is."""
GRACE_S = 1.0
"""Time for the main thread to notice the signal itself, between two actions, and clean up."""


def start_watchdog(describe: Callable[[], str]) -> None:
    """Watch SIGINT, SIGTERM and the parent process. `describe` tells, for the last message, who and where we are.

    Call it from the main thread, once in a process.
    """
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    # Raised inside some object's __del__, an interrupt is lost, and Python would print where: the thread ends us then.
    sys.unraisablehook = _tell_of_unraisable
    # The writer must live as long as the process: the thread holds both ends.
    parent = int(os.environ.get(LAUNCHER, os.getppid()))
    threading.Thread(
        target=_watch, args=(reader, writer, parent, describe), name="loraplex-watchdog", daemon=True
    ).start()


def _interrupt(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _tell_of_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


def _watch(reader: socket.socket, writer: socket.socket, parent: int, describe: Callable[[], str]) -> None:
    why = ""
    while not why:
        ready, _, _ = select.select([reader], [], [], 1.0)
        if ready:
            numbers = set(reader.recv(64)) & {signal.SIGINT, signal.SIGTERM}
            why = "" if not numbers else f"told to stop by {signal.Signals(min(numbers)).name}"
        elif os.getppid() != parent:
            why = "its launcher is gone"
    where = describe()
    threading.Event().wait(GRACE_S)
    # Still here: the main thread is stuck, so no clean-up can run. Files are renamed into place only when whole.
    if LAUNCHER not in os.environ or os.getppid() != parent:
        # Otherwise the launcher tells of all workers in one line.
        print(f"loraplex: {where}: {why}", file=sys.stderr, flush=True)
    del writer
    os._exit(STOPPED)
