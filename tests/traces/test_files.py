"""Files are there whole or not at all, and a run's files are found by name."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from loraplex.traces.files import check_writable, write_atomically
from loraplex.traces.run_folder import metrics_files, metrics_name


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.txt"
    write_atomically(path, "one")
    write_atomically(path, "zwei: ä")
    assert path.read_text(encoding="utf-8") == "zwei: ä"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, "old")

    def broken(*_: object) -> None:
        raise OSError("disk gone")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk gone"):
        write_atomically(path, "new")
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {"a.txt": "old"}


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    for folder in (tmp_path, "/", "."):
        with pytest.raises(IsADirectoryError, match="is a folder; name a file to write"):
            write_atomically(folder, "text")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_ordinary_file_is_written_into_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_writable(pipe)
        write_atomically(pipe, "text")
        assert os.read(reader, 10) == b"text"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.parametrize("write", [check_writable, lambda path: write_atomically(path, "text")])
def test_an_error_names_the_file_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    def refused(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "touch", refused)
    monkeypatch.setattr(Path, "write_text", refused)
    with pytest.raises(PermissionError) as error:
        write(tmp_path / "a.txt")
    assert error.value.filename == str(tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_is_full_in_the_midst_of_a_file_names_it() -> None:
    with pytest.raises(OSError, match="No space left") as error:
        write_atomically("/dev/full", "text")
    assert error.value.filename == "/dev/full"


def test_what_failed_is_told_and_not_that_nothing_could_be_cleaned_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A read-only file system refuses to remove even what is not there.
    def refused(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    for name in ("touch", "write_text", "unlink"):
        monkeypatch.setattr(Path, name, refused)
    for write in (check_writable, lambda path: write_atomically(path, "text")):
        with pytest.raises(OSError, match="Read-only") as error:
            write(tmp_path / "a.txt")
        assert error.value.filename == str(tmp_path / "a.txt")


def test_whether_a_file_can_be_written_is_asked_without_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    check_writable(path)
    assert list(path.parent.iterdir()) == []
    with pytest.raises(IsADirectoryError, match="is a folder; name a file to write"):
        check_writable(tmp_path)


def test_metrics_are_found_by_adapter(tmp_path: Path) -> None:
    for adapter in ("papers", "maths-r16"):
        (tmp_path / metrics_name(adapter)).touch()
    (tmp_path / "other.jsonl").touch()
    assert metrics_files(tmp_path) == {
        "maths-r16": tmp_path / "metrics-maths-r16.jsonl",
        "papers": tmp_path / "metrics-papers.jsonl",
    }
