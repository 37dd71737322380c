"""Reading JSON with an error that names the file, and writing so that no reader ever sees half of one."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import TraceError


def write_atomically(path: Path | str, text: str) -> None:
    """Write a text file; a reader sees the old one or the whole new one. Makes missing folders.

    What is there and no ordinary file, such as /dev/null or a pipe, is written into and never replaced. Raises OSError
    naming `path`.
    """
    target = Path(path)
    if _is_device(target):
        with _naming(target, instead_of=target):
            target.write_text(text, encoding="utf-8")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _beside(target)
    try:
        with _naming(target, instead_of=unfinished):
            unfinished.write_text(text, encoding="utf-8")
            os.replace(unfinished, target)
    finally:
        _forget(unfinished)


def check_writable(path: Path | str) -> None:
    """Raise, before long work, the OSError that `write_atomically` would meet after it. Makes missing folders."""
    target = Path(path)
    if _is_device(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    trial = _beside(target)
    try:
        with _naming(target, instead_of=trial):
            trial.touch()
    finally:
        _forget(trial)


def _is_device(target: Path) -> bool:
    # Or a pipe: what is written into as it is. Raises IsADirectoryError for a folder.
    if target.is_dir() or not target.name:
        raise IsADirectoryError(errno.EISDIR, "is a folder; name a file to write", str(target))
    return target.exists() and not target.is_file()


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.tmp")


def _forget(unfinished: Path) -> None:
    # On a file system that is read-only this fails too, even where there is nothing; what failed before is the news.
    with suppress(OSError):
        unfinished.unlink()


@contextmanager
def _naming(target: Path, *, instead_of: Path) -> Iterator[None]:
    # The user gave `target` and never heard of the other. A disk that is full while a file is written names none.
    try:
        yield
    except OSError as error:
        if error.filename == str(instead_of) or (error.filename is None and error.errno is not None):
            error.filename, error.filename2 = str(target), None
        raise


def read_json(path: Path | str, *, what: str, writer: str) -> object:
    """Content of a JSON file. Raises TraceError that says `what` file is meant and which `writer` makes one."""
    try:
        content: object = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror}); give a {what} file") from error
    except ValueError as error:
        raise TraceError(f"{path}: is no JSON ({error}); write it with {writer}") from error
    return content
