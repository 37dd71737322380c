"""What is seen while training goes: a table on a terminal, lines elsewhere."""

import io
import re

from rich.console import Console

from loraplex.engine.evaluation_records import EvaluationRecord
from loraplex.engine.live import LiveTable
from loraplex.engine.metrics import StepRecord, StepState


def step(adapter: str, number: int, *, ms: float, state: StepState = "taken") -> StepRecord:
    return StepRecord(
        adapter=adapter,
        step=number,
        loss=2.0 / (number + 1),
        learning_rate=1e-3,
        grad_norm=0.5,
        update_norm=0.25,
        tokens=100,
        ms=ms,
        state=state,
    )


def shown(*, terminal: bool, seconds_a_step: float = 10.0) -> str:
    """One adapter from the start, one resumed after its second step of four."""
    text, now = io.StringIO(), [0.0]
    console = Console(file=text, force_terminal=terminal, width=110, color_system=None)
    with LiveTable(console, clock=lambda: now[0]) as table:
        table.begin({"one": 4, "two": 4}, {"one": 0, "two": 2})
        for number in range(2):
            now[0] += seconds_a_step
            table.advance(step("one", number, ms=1000.0 * (number + 1)))
        table.evaluated(EvaluationRecord(adapter="one", step=2, loss=3.25, best=True))
        now[0] += seconds_a_step
        table.advance(step("two", 2, ms=4000.0, state="quarantined"))
    return text.getvalue()


def test_a_terminal_gets_a_table_with_what_is_left() -> None:
    drawn = shown(terminal=True)
    for name in ("adapter", "step", "loss", "validation", "rate", "grad norm", "tokens/s", "time left"):
        assert name in drawn
    # Two of four steps in 2 s: 2 s are left; 200 tokens in 2 s.
    (row,) = (line for line in drawn.splitlines() if "2/4" in line)
    assert re.findall(r"[^\s│|]+", row) == ["one", "2/4", "1.0000", "3.2500", "1.0e-03", "0.5", "100", "0:00:02"]
    (row,) = (line for line in drawn.splitlines() if "quarantined" in line)
    assert re.findall(r"[^\s│|]+", row)[:3] == ["two", "3/4", "quarantined"]
    assert "memory of the last stage: " in drawn


def test_elsewhere_a_line_comes_every_so_often() -> None:
    lines = shown(terminal=False).splitlines()
    # 15 s after the begin, at the step that came then.
    assert len(lines) == 1
    assert lines[0].startswith("one 2/4 loss 1.0000 (0:00:02 left); two 2/4 loss - (- left); memory ")


def test_a_short_run_says_nothing_where_nobody_watches() -> None:
    assert shown(terminal=False, seconds_a_step=1.0) == ""
