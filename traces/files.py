"""Writing files so that no reader ever sees half of one."""

import errno
import os
from pathlib import Path


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
