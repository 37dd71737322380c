"""What a run leaves in its folder, by name. Simulate, train and demo write these files; compare and report read them.

| file | what |
|---|---|
| plan.json | the Plan |
| timeline-simulated.json, timeline-measured.json | what was foretold, what happened |
| summary.json | headline numbers, as printed with --json |
| command.txt | the command lines that made the folder, one a line |
| metrics-ADAPTER.jsonl | one line a step: step, loss, learning_rate, grad_norm, ... |
| ranking.json | adapters of the same data, the best first |
| trace.json | both timelines for https://ui.perfetto.dev |
| profile.json | the measured costs that the prediction rests on |
| comparison.json | how well the simulated timeline foretold the measured one |
| report.html | everything above on one page |
"""

from pathlib import Path

PLAN = "plan.json"
SIMULATED = "timeline-simulated.json"
MEASURED = "timeline-measured.json"
SUMMARY = "summary.json"
COMMAND = "command.txt"
RANKING = "ranking.json"
TRACE = "trace.json"
REPORT = "report.html"
PROFILE = "profile.json"
COMPARISON = "comparison.json"


def metrics_name(adapter: str) -> str:
    """File name of one adapter's metrics; adapter names are checked when a job is read."""
    return f"metrics-{adapter}.jsonl"


def metrics_files(folder: Path) -> dict[str, Path]:
    """The metrics in a folder by adapter, in order of name."""
    return {path.stem.removeprefix("metrics-"): path for path in sorted(folder.glob("metrics-*.jsonl"))}
