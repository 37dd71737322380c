"""A full disk is told of by the path that could not be written, with the mend."""

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from loraplex.engine.disk import disk_error, settle, writing
from loraplex.engine.errors import DiskError
from loraplex.engine.metrics import MetricsWriter, StepRecord

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="only Linux has a device that is always full")


@needs_full
def test_a_metrics_line_that_does_not_fit_names_the_file(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, steps_done={"one": 0})
    path = tmp_path / "metrics-one.jsonl"
    path.unlink()
    path.symlink_to(FULL)
    record = StepRecord(
        adapter="one", step=0, loss=1.0, learning_rate=1.0, grad_norm=1.0, update_norm=1.0, tokens=1, ms=1.0
    )
    with pytest.raises(
        DiskError,
        match=r"metrics-one.jsonl could not be written \(No space left on device\); free some space there and go on",
    ):
        writer.write(record)


def test_tensors_that_do_not_fit_are_told_alike() -> None:
    # What safetensors said on a tmpfs of 2 MiB.
    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with (
        pytest.raises(
            DiskError,
            match=r"part.safetensors could not be written \(No space left on device\); free some space there",
        ),
        writing(Path("part.safetensors")),
    ):
        raise full


def test_a_file_that_the_error_names_is_the_one_that_is_told() -> None:
    error = OSError(errno.EACCES, "Permission denied", "here/a.json")
    assert str(disk_error(error, Path("elsewhere"))) == (
        "here/a.json could not be written (Permission denied); see to it that this can be written and go on from the "
        "last whole checkpoint with --resume"
    )


def test_a_file_is_settled_or_the_disk_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "part"
    path.touch()
    settle(path)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    # As a network's file system says it: every write before was taken.
    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(DiskError, match=r"part could not be written \(No space left .*; free some space there and come"),
        writing(path, then="come again"),
    ):
        settle(path)


def test_other_errors_pass() -> None:
    assert disk_error(ConnectionResetError(errno.ECONNRESET, "gone")) is None
    with pytest.raises(ConnectionResetError), writing(Path("x")):
        raise ConnectionResetError(errno.ECONNRESET, "gone")
