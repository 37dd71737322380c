"""What a run prints at its end, in a terminal of 80 columns."""

import io
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loraplex.engine.metrics import StepRecord
from loraplex.engine.parity import ParityRow
from loraplex.engine.show import parity_table, train_line, train_table
from loraplex.engine.trained_run import TrainedAdapter, TrainedRun

LONG = "a-tenant-whose-name-is-longer-than-all-others-together"


def printed(table: Table) -> str:
    """As the commands print it."""
    text = io.StringIO()
    Console(file=text, width=80, soft_wrap=True).print(table)
    assert max(map(len, text.getvalue().splitlines())) <= 80
    assert "…" not in text.getvalue()
    return text.getvalue()


def name_in(shown: str) -> str:
    """What stands in the first column, line after line."""
    return "".join(line[1:].split(" ")[0] for line in shown.splitlines())


def test_a_run_is_told_with_its_speed_and_every_name_in_full() -> None:
    first = StepRecord(
        adapter=LONG, step=0, loss=6.5, learning_rate=1e-3, grad_norm=1.0, update_norm=0.1, tokens=100, ms=10.0
    )
    adapter = TrainedAdapter(
        name=LONG,
        folder=Path("out/adapters") / LONG,
        metrics_file=Path("out/metrics.jsonl"),
        first=first,
        last=replace(first, step=113, loss=2.25, state="quarantined"),
        validation={"before": 6.1793, "after": 3.7509},
        steps_taken=113,
        quarantined_at=113,
    )
    run = TrainedRun(
        output_dir=Path("out"),
        timeline_file=Path("out/timeline.json"),
        makespan_ms=11_200.0,
        tokens=284_253,
        recompute="none",
        adapters=(adapter,),
    )
    assert train_line(run) == "out: 284,253 tokens in 11.2 s, 25,380 tokens/s"
    shown = printed(train_table(run))
    assert LONG in name_in(shown)
    for figure in ("113, then", "quarantined", "6.5000", "2.2500", "6.1793 to 3.7509"):
        assert figure in shown


def test_parity_names_every_adapter_in_full() -> None:
    row = ParityRow(
        adapter=LONG,
        against="peft",
        steps=10,
        max_weight_difference=2e-4,
        max_loss_difference=3e-7,
        mean_loss_difference=1e-7,
        max_weight_change=1e-2,
        limit=1e-4,
    )
    shown = printed(parity_table([row, replace(row, against="engine", max_weight_difference=1e-6)]))
    assert name_in(shown).count(LONG) == 2
    for word in ("2.0e-04", "1.0e-06", "APART: weights,", "limit 1e-04", "equal", "engine", "+ dropout"):
        assert word in shown
