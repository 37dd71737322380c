"""Writing what a run must not lose: an error names the path and the mend, and ends the run."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .errors import DiskError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_OF_THE_DISK = (*_FULL, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES, errno.EPERM)


_RESUME = "go on from the last whole checkpoint with --resume"


@contextmanager
def writing(path: Path, *, then: str = _RESUME) -> Iterator[None]:
    """Raise DiskError where what is inside cannot write; `path` is named unless the error names a file itself.

    `then` is what to do once it can be written.
    """
    try:
        yield
    except OSError as error:
        told = disk_error(error, path, then=then)
        if told is None:
            raise
        raise told from None
    except SafetensorError as error:
        # Its library wraps what the system said.
        full = "No space left" in str(error)
        why = "No space left on device" if full else str(error)
        raise DiskError(_message(str(path), why, full=full, then=then)) from None


def settle(path: Path) -> None:
    """Have a file that was written on the disk before anything counts on it. Raises OSError where it is not.

    Only here does a network's file system say that there was no room, and only what lies there outlives the machine.
    """
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(error: OSError, path: Path | None = None, *, then: str = _RESUME) -> DiskError | None:
    """What to tell of an error of the disk; None for another one."""
    if error.errno not in _OF_THE_DISK:
        return None
    # What is written into an open file fails without a name.
    where = str(error.filename2 or error.filename or path or "a file")
    return DiskError(_message(where, error.strerror or str(error), full=error.errno in _FULL, then=then))


def _message(where: str, why: str, *, full: bool, then: str) -> str:
    mend = "free some space there" if full else "see to it that this can be written"
    return f"{where} could not be written ({why}); {mend} and {then}"
