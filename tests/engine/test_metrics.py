"""metrics-ADAPTER.jsonl: written line by line, cut back on resume, read whole."""

from pathlib import Path

import pytest

from loraplex.engine.metrics import MetricsWriter, StepRecord, read_metrics
from loraplex.planner.errors import JobError
from loraplex.traces.run_folder import metrics_files


def record(adapter: str, step: int) -> StepRecord:
    return StepRecord(
        adapter=adapter,
        step=step,
        loss=1 / 3,
        learning_rate=1e-4,
        grad_norm=0.1,
        update_norm=2e-5,
        tokens=77,
        ms=12.5,
    )


def test_what_is_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, steps_done={"one": 0, "two": 0})
    written = [record("one", 0), record("two", 0), record("one", 1)]
    for entry in written:
        writer.write(entry)
    assert read_metrics(tmp_path / "metrics-one.jsonl") == (written[0], written[2])
    assert read_metrics(metrics_files(tmp_path)["two"]) == (written[1],)


def test_a_resumed_run_keeps_the_steps_that_it_does_not_take_again(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, steps_done={"one": 0, "two": 0})
    for step in range(5):
        writer.write(record("one", step))
    MetricsWriter(tmp_path, steps_done={"one": 3, "two": 0}).write(record("one", 3))
    assert [entry.step for entry in read_metrics(tmp_path / "metrics-one.jsonl")] == [0, 1, 2, 3]
    assert read_metrics(tmp_path / "metrics-two.jsonl") == ()


@pytest.mark.parametrize("line", ['{"adapter": "one"', '{"colour": "red"}', "[1]", "null"])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    MetricsWriter(tmp_path, steps_done={"one": 0}).write(record("one", 0))
    path = tmp_path / "metrics-one.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(JobError, match=r"metrics-one\.jsonl:2: is no record of a step \(.*\); delete that line"):
        read_metrics(path)
