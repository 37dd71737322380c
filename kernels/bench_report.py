"""The benchmark's records as a file, a table, a plot and a verdict."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]

GOAL, BESIDE, NO_GRAPH = 1.05, 1.10, 1.10
TRIED_SECTIONS = ("What did not work", "What is left")
"""Of docs/log.md, which alone says what was tried."""


def write_results(folder: Path, stem: str, document: dict[str, Any]) -> list[Path]:
    """`<stem>.json` (all of it), `.csv` (the records) and `.png` (bars); the paths written."""
    json_path, csv_path, plot_path = (folder / f"{stem}.{suffix}" for suffix in ("json", "csv", "png"))
    write_json(json_path, document)
    records: list[Record] = document["records"]
    columns = list(dict.fromkeys(name for record in records for name in record))
    with csv_path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(records)
    plot(records, document["gpu"], plot_path)
    return [json_path, csv_path, plot_path]


def write_json(path: Path, document: dict[str, Any]) -> None:
    """The document with one record a line. Written whole or not at all: a run may be ended at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.part")
    beside.write_text(_one_record_a_line(document), encoding="utf-8")
    beside.replace(path)


def summary(records: list[Record]) -> dict[str, Any]:
    """Geometric means of ours/frozen by case and the goals they are held to; where eager is faster or smaller."""
    found: dict[str, Any] = {}
    for num_adapters in (1, 4):
        for dropout in (0.0, 0.1):
            own = [r for r in records if r["goal"] and r["num_adapters"] == num_adapters and r["dropout"] == dropout]
            found[f"goal rows, {num_adapters} adapter(s), p = {dropout}"] = _case(own, GOAL)
    both = [r for r in records if r["direction"] == "both"]
    beside = [r for r in both if r["cuda_graph"] and not r["goal"]]
    found["beside: r 8 and 64, T 2048, lone k and v"] = _case(beside, BESIDE)
    found["without graphs, T >= 8192"] = _case([r for r in both if not r["cuda_graph"] and r["T"] >= 8192], NO_GRAPH)
    found["forward only"] = _case([r for r in records if r["direction"] == "forward"], None)
    found["slower than eager"] = _above_eager(records, "ms")
    found["more peak memory than eager"] = _above_eager(records, "peak_bytes")
    found["bytes saved for backward, ours / eager"] = geomean(
        r["ours_saved_bytes"] / r["eager_saved_bytes"] for r in records if r.get("eager_saved_bytes")
    )
    return found


def at_most(record: Record) -> float | None:
    """What ours/frozen of its case is held to; None where a row is only reported."""
    if record["direction"] != "both":
        return None
    if record["cuda_graph"]:
        return GOAL if record["goal"] else BESIDE
    return NO_GRAPH if record["T"] >= 8192 else None


def missed(record: Record) -> bool:
    """Whether the row on its own is above what the mean of its case is held to."""
    most = at_most(record)
    return most is not None and record["ours_ms"] > most * record["frozen_ms"]


def row_name(record: Record) -> str:
    """A row of the grid, or its record, in words; no two rows share a name."""
    graph = "graph" if record["cuda_graph"] else "no graph"
    return f"{shape_name(record)} {record['direction']} {graph}"


def shape_name(record: Record) -> str:
    """What decides which passes run forward and backward, and how long they take."""
    return f"{record['linear']} T={record['T']} r={record['r']} adapters={record['num_adapters']} p={record['dropout']}"


def by_pass(events: Iterable[tuple[str, float, float]], *, num_calls: int) -> dict[str, float]:
    """{pass: ms a call} of (kernel, start, ms): a kernel that a call launches several times is told apart by order."""
    starts: dict[str, list[tuple[float, float]]] = {}
    for name, start, milliseconds in events:
        starts.setdefault(name, []).append((start, milliseconds))
    passes = {}
    for name, launches in starts.items():
        times = [milliseconds for _, milliseconds in sorted(launches)]
        each, rest = divmod(len(times), num_calls)
        if rest or each == 1:
            # an event that the profiler lost leaves no order to go by
            passes[name] = round(sum(times) / num_calls, 4)
            continue
        for turn in range(each):
            passes[f"{name} {turn + 1}/{each}"] = round(sum(times[turn::each]) / num_calls, 4)
    return passes


def tried(log: str) -> list[str]:
    """What the kernels' part of docs/log.md lists as tried in vain and as left, an entry a bullet."""
    _, _, kernels = log.partition("\n## Kernels\n")
    kernels, _, _ = kernels.partition("\n## ")
    entries: list[str] = []
    for section in kernels.split("\n### ")[1:]:
        heading, _, body = section.partition("\n")
        if heading in TRIED_SECTIONS:
            entries += [" ".join(bullet.split()) for bullet in f"\n{body}".split("\n- ")[1:]]
    return entries


def geomean(ratios: Iterable[float]) -> float | None:
    """None of nothing: a thinned grid has cases without rows, and JSON has no NaN."""
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logs) / len(logs)) if logs else None


def plot(records: list[Record], gpu: str, path: Path) -> None:
    """Bars of ours, eager and compiled over frozen, one cluster per linear, geometric means over the rest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(14, 8), sharey=True)
    top = 0.0
    cases = [(num_adapters, dropout) for num_adapters in (1, 4) for dropout in (0.0, 0.1)]
    for axis, (num_adapters, dropout) in zip(axes.flat, cases, strict=True):
        own = [r for r in records if r["goal"] and r["num_adapters"] == num_adapters and r["dropout"] == dropout]
        linears = list(dict.fromkeys(r["linear"] for r in own))
        for offset, way in ((-0.2, "ours"), (0.2, "eager")):
            heights = [geomean(_ratios([r for r in own if r["linear"] == name], way)) or 0.0 for name in linears]
            top = max(top, *heights) if heights else top
            axis.bar([i + offset for i in range(len(linears))], heights, width=0.38, label=way)
        axis.set_visible(bool(own))
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.axhline(GOAL, color="black", linewidth=0.8, linestyle=":")
        axis.set_xticks(range(len(linears)), linears, rotation=45, ha="right")
        axis.set_title(f"{num_adapters} adapter{'s' if num_adapters > 1 else ''}, dropout {dropout}")
    axes[0, 0].set_ylim(0, max(1.1, 1.03 * top))
    axes[0, 0].legend()
    axes[0, 0].set_ylabel("time / frozen linear")
    axes[1, 0].set_ylabel("time / frozen linear")
    figure.suptitle(f"Forward + backward, r = 16, T = 4096 to 16384, CUDA graphs, {gpu}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _case(records: list[Record], at_most: float | None) -> dict[str, Any]:
    ways = {way: geomean(_ratios(records, way)) for way in ("ours", "eager")}
    return {**ways, "at_most": at_most, "rows": len(records)}


def _above_eager(records: list[Record], unit: str) -> dict[str, Any]:
    """How many rows were compared, and those where ours takes more than eager."""
    compared = [r for r in records if f"eager_{unit}" in r]
    above = [row_name(r) for r in compared if r[f"ours_{unit}"] > r[f"eager_{unit}"]]
    return {"rows": len(compared), "above": len(above), "which": above}


def _ratios(records: list[Record], way: str) -> list[float]:
    return [record[f"{way}_ms"] / record["frozen_ms"] for record in records]


def _one_record_a_line(document: dict[str, Any]) -> str:
    head = json.dumps({key: value for key, value in document.items() if key != "records"}, indent=1)
    lines = ",\n".join("  " + json.dumps(record) for record in document["records"])
    return head[:-2] + ',\n "records": [\n' + lines + "\n ]\n}\n"
