"""What is seen while training goes: a table on a terminal, lines elsewhere."""

import io

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


def shown(*, terminal: bool, seconds_a_step: float = 10.0, one: str = "one") -> str:
    """One adapter from the start, one resumed after its second step of four."""
    text, now = io.StringIO(), [0.0]
    console = Console(file=text, force_terminal=terminal, width=80, height=24, color_system=None)
    with LiveTable(console, clock=lambda: now[0]) as table:
        table.begin({one: 4, "two": 4}, {one: 0, "two": 2})
        for number in range(2):
            now[0] += seconds_a_step
            table.advance(step(one, number, ms=1000.0 * (number + 1)))
        table.evaluated(EvaluationRecord(adapter=one, step=2, loss=3.25, best=True))
        now[0] += seconds_a_step
        table.advance(step("two", 2, ms=4000.0, state="quarantined"))
    return text.getvalue()


def test_a_terminal_of_80_columns_gets_a_table_with_what_is_left() -> None:
    drawn = shown(terminal=True)
    for name in ("adapter", "step", "loss", "dation", "rate", "norm", "/s", "left"):
        assert name in drawn
    # Two of four steps in 2 s: 2 s are left; 200 tokens in 2 s.
    (row,) = (line for line in drawn.splitlines() if "2/4" in line)
    assert row.split() == ["one", "2/4", "1.0000", "3.2500", "1.0e-03", "0.5", "100", "0:00:02"]
    (row,) = (line for line in drawn.splitlines() if "quarantined" in line)
    assert row.split() == ["two", "3/4", "0.6667", "-", "1.0e-03", "0.5", "25", "quarantined"]
    # 300 tokens in 4 s; the last to end is `one`.
    (row,) = (line for line in drawn.splitlines() if line.lstrip().startswith("all"))
    assert row.split() == ["all", "5/8", "75", "0:00:02"]
    assert "memory of the last stage: " in drawn


def test_a_long_name_is_folded_and_no_figure_is_cut() -> None:
    drawn = shown(terminal=True, one="gsm8k-r16-dropout0.1-lr0.0002")
    assert "…" not in drawn
    first, second = (line for line in drawn.splitlines() if "gsm8k" in line or line.strip() == "-lr0.0002")
    assert first.split()[1:] == ["2/4", "1.0000", "3.2500", "1.0e-03", "0.5", "100", "0:00:02"]
    assert first.split()[0] + second.strip() == "gsm8k-r16-dropout0.1-lr0.0002"


def test_of_more_adapters_than_lines_those_that_still_train_are_shown() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80, height=12, color_system=None)
    with LiveTable(console) as table:
        table.begin({f"a{number}": 1 for number in range(6)}, dict.fromkeys((f"a{number}" for number in range(6)), 0))
        table.advance(step("a0", 0, ms=1000.0))
        table.advance(step("a2", 0, ms=2000.0))
    drawn = [line.split()[0] for line in text.getvalue().splitlines() if line.split()[1:2] in (["0/1"], ["1/1"])]
    assert drawn == ["a1", "a3", "a4", "a5"]
    assert "2 more adapters; memory of the last stage: " in text.getvalue()


def test_elsewhere_a_line_comes_every_so_often() -> None:
    lines = shown(terminal=False).splitlines()
    # 15 s after the begin, at the step that came then.
    assert len(lines) == 1
    assert lines[0].startswith("step 4/8, 100 tokens/s, 0:00:02 left, memory ")
    assert lines[0].endswith(": one 2/4 loss 1.0000; two 2/4 loss -")


def test_a_short_run_says_nothing_where_nobody_watches() -> None:
    assert shown(terminal=False, seconds_a_step=1.0) == ""
