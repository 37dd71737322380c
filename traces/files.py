"""Reading JSON with an error that names the file, and writing so that no reader ever sees half of one."""

import errno
import json
import os
from pathlib import Path

from .errors import TraceError


def write_atomically(path: Path | str, text: str) -> None:
    """Write a text file; a reader sees the old one or the whole new one. Makes missing folders."""
    target = Path(path)
    if target.is_dir() or not target.name:
        raise IsADirectoryError(errno.EISDIR, "is a folder; name a file to write", str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def read_json(path: Path | str, *, what: str, writer: str) -> object:
    """Content of a JSON file. Raises TraceError that says `what` file is meant and which `writer` makes one."""
    try:
        content: object = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror}); give a {what} file") from error
    except ValueError as error:
        raise TraceError(f"{path}: is no JSON ({error}); write it with {writer}") from error
    return content
