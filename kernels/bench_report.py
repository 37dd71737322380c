"""The benchmark's records as a file, a table, a plot and a verdict."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]

GOAL, BESIDE, NO_GRAPH = 1.05, 1.10, 1.10


def write_results(folder: Path, stem: str, document: dict[str, Any]) -> list[Path]:
    """`<stem>.json` (all of it), `.csv` (the records) and `.png` (bars); the paths written."""
    folder.mkdir(parents=True, exist_ok=True)
    json_path, csv_path, plot_path = (folder / f"{stem}.{suffix}" for suffix in ("json", "csv", "png"))
    json_path.write_text(_one_record_a_line(document), encoding="utf-8")
    records: list[Record] = document["records"]
    columns = list(dict.fromkeys(name for record in records for name in record))
    with csv_path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(records)
    plot(records, document["gpu"], plot_path)
    return [json_path, csv_path, plot_path]


def summary(records: list[Record]) -> dict[str, Any]:
    """Geometric means of ours/frozen by case, the goals they are held to, and every row slower than eager."""
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
    found["rows slower than eager"] = [_name(r) for r in records if r["ours_ms"] > r["eager_ms"]]
    found["rows with more memory than eager"] = [
        _name(r) for r in records if r.get("ours_peak_bytes", 0) > r.get("eager_peak_bytes", 0)
    ]
    return found


def geomean(ratios: Iterable[float]) -> float | None:
    """None of nothing: a thinned grid has cases without rows, and JSON has no NaN."""
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logs) / len(logs)) if logs else None


def missed(records: list[Record]) -> list[Record]:
    """The goal rows that are above the goal on their own."""
    return [r for r in records if r["goal"] and r["ours_ms"] > GOAL * r["frozen_ms"]]


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
    axes[0, 0].set_ylim(0.9, max(1.1, 1.03 * top))
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


def _ratios(records: list[Record], way: str) -> list[float]:
    return [record[f"{way}_ms"] / record["frozen_ms"] for record in records]


def _name(record: Record) -> str:
    keys: tuple[tuple[str, Callable[[Any], str]], ...] = (
        ("linear", str), ("T", "T={}".format), ("r", "r={}".format), ("num_adapters", "adapters={}".format),
        ("dropout", "p={}".format), ("direction", str), ("cuda_graph", lambda on: "graph" if on else "no graph"),
    )  # fmt: skip
    return " ".join(form(record[key]) for key, form in keys)


def _one_record_a_line(document: dict[str, Any]) -> str:
    head = json.dumps({key: value for key, value in document.items() if key != "records"}, indent=1)
    lines = ",\n".join("  " + json.dumps(record) for record in document["records"])
    return head[:-2] + ',\n "records": [\n' + lines + "\n ]\n}\n"
