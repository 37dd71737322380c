"""One run a folder: two at once would write into each other's files. Importing this needs no torch."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..planner.errors import PlanError
from .watchdog import LAUNCHER

_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a run's folder, which is made, until what is inside has ended; the system lets go of it with the process.

    The folder itself is locked, so that nothing is left behind; one that is empty in the end and was not there before
    is removed. File systems that lock no folders (NFS, for one) lock nothing. Raises PlanError where another run, of
    this or another process on this machine, holds it.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)
        if is_new:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def alone_as_first_worker(folder: Path) -> Iterator[None]:
    """The same in worker 0 of a run that torchrun started: `loraplex train` has done it for its own workers."""
    if LAUNCHER in os.environ or os.environ.get("RANK") != "0":
        yield
        return
    with alone_in(folder):
        yield


def _lock(descriptor: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:
        # No such locks on this system.
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            raise PlanError(f"{folder} is in use by another run; wait for its end, or give another --output") from None
