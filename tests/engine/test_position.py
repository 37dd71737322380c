"""Where a worker is, left for whoever outlives it."""

from pathlib import Path

from loraplex.engine.position import PositionFile, position_path, read_position


def test_the_last_position_is_read_back(tmp_path: Path) -> None:
    path = position_path(tmp_path / "work", 3)
    assert read_position(path) == "the start"
    position = PositionFile(path)
    assert read_position(path) == "the start"
    position.move("2F1234567", 1234567)
    assert read_position(path) == position.text == "2F1234567, microbatch 1234567"
    # A shorter text leaves nothing of the longer one behind.
    position.move("2S0.1", -1)
    assert read_position(path) == "2S0.1"
