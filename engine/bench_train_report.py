"""The figures of `bench train` as JSON, CSV, bars and a table."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd
from rich.table import Table

from ..traces.errors import InputError
from ..traces.files import write_atomically
from .bench_train_spec import NAMED, SYSTEMS

Record = dict[str, Any]
NOT_INSTALLED: Final = "not installed"
"""In place of a version."""


def write_results(folder: Path, stem: str, document: dict[str, Any]) -> list[Path]:
    """`<stem>.json` (all of it), `.csv` (the records) and `.png` (bars, or lines of growth); the paths written."""
    paths = [folder / f"{stem}.{suffix}" for suffix in ("json", "csv", "png")]
    records: list[Record] = document["records"]
    write_json(folder, stem, document)
    write_atomically(paths[1], pd.DataFrame(records).to_csv(index=False))
    measured = [record for record in records if "tokens_per_s" in record]
    if not measured:
        return paths[:2]
    _plot(measured, paths[2], title=_title(document), growth=bool(document["growth"]))
    return paths


def write_json(folder: Path, stem: str, document: dict[str, Any]) -> None:
    """`<stem>.json` alone: after every record, so that a run that is cut short keeps what it has."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{stem}.json", _one_record_a_line(document))


def check_no_earlier(folder: Path, stem: str) -> None:
    """Raise InputError where results of that name lie, which the first record of a new run would write over."""
    path = folder / f"{stem}.json"
    if path.is_file():
        raise InputError(f"{path} holds results of today; keep them with --add, move them away, or give another folder")


def joined_with_earlier(folder: Path, stem: str, document: dict[str, Any]) -> dict[str, Any]:
    """The document with the records of an earlier one of that name, whose commands are named too.

    What the earlier one says beside (a note) stays. Raises InputError where it was of another model, GPU or other
    versions.
    """
    path = folder / f"{stem}.json"
    if not path.is_file():
        return document
    earlier = json.loads(path.read_text(encoding="utf-8"))
    for name in ("model", "gpu"):
        _check_same(path, name, earlier[name], document[name])
    for package in earlier["versions"].keys() & document["versions"].keys():
        # A package that was installed in between (flash) changes nothing in what was measured without it.
        both = earlier["versions"][package], document["versions"][package]
        if NOT_INSTALLED not in both:
            _check_same(path, package, *both)
    return {
        **earlier,
        **document,
        "versions": earlier["versions"] | {k: v for k, v in document["versions"].items() if v != NOT_INSTALLED},
        "command": f"{earlier['command']} && {document['command']}",
        "systems": earlier["systems"] | document["systems"],
        "records": earlier["records"] + document["records"],
    }


def with_record(records: Sequence[Record], record: Record) -> list[Record]:
    """The records and a new one behind them, which takes the place of one of the same variant and point.

    One at a time, so that a run that is cut short loses nothing that was measured before it.
    """
    return [*(other for other in records if any(other.get(name) != record[name] for name in NAMED)), record]


def _check_same(path: Path, name: str, earlier: str, now: str) -> None:
    if earlier != now:
        raise InputError(f"{path} is of {name} {earlier}, not {now}; leave --add out or give another folder")


def results_table(records: Sequence[Record]) -> Table:
    """For people: a line for each figure, or why there is none."""
    what = ("system", "attention", "recompute", "workload", "dropout", "adapters", "microbatch")
    table = Table(*what, "tokens/s", "GiB", "hours", "note")
    for record in records:
        where = (
            record["system"],
            record["attention"],
            record["recompute"],
            record["workload"],
            f"{record['dropout']:g}",
            str(record["num_adapters"]),
        )
        if "skipped" in record:
            table.add_row(*where, str(record["microbatch_tokens"]), "", "", "", f"skipped: {record['skipped']}")
            continue
        memory = record["peak_memory_gib"]
        table.add_row(
            *where,
            str(record["microbatch_tokens"]),
            f"{record['tokens_per_s']:,.0f}",
            "" if memory is None else f"{memory:.1f}",
            f"{record['hours_for_all_jobs']:.3f}",
            record.get("note", ""),
        )
    return table


def _title(document: Mapping[str, Any]) -> str:
    base = " in NF4" if document.get("load_in_4bit") else ""
    return f"{document['model']}{base}, {document['gpu']}"


def _plot(records: Sequence[Record], path: Path, *, title: str, growth: bool) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = 2 if growth else len({record["workload"] for record in records})
    figure, grid = pyplot.subplots(1, panels, figsize=(6.5 * panels, 5), squeeze=False)
    axes = grid[0]
    if growth:
        base = records[0]["microbatch_tokens"]
        for axis, key, of in (
            (axes[0], "num_adapters", [r for r in records if r["microbatch_tokens"] == base]),
            (axes[1], "microbatch_tokens", [r for r in records if r["num_adapters"] == 4]),
        ):
            for name, own in _by_name(of).items():
                points = sorted((record[key], record["tokens_per_s"]) for record in own)
                axis.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
            axis.set_xscale("log", base=2)
            values = sorted({record[key] for record in of})
            axis.set_xticks(values, [f"{value:,}" for value in values])
            axis.minorticks_off()
            axis.set_xlabel(key)
            axis.set_ylabel("real tokens/s")
            axis.set_ylim(0, 1.08 * max(record["tokens_per_s"] for record in records))
        axes[0].legend(loc="lower right")
    else:
        _bars(axes, records)
    # At the left, where no legend is.
    figure.suptitle(title, x=0.01, horizontalalignment="left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _bars(axes: Any, records: Sequence[Record]) -> None:
    # One panel a workload, one bar a system and dropout.
    order = tuple(SYSTEMS)
    named = dict(sorted(_by_name(records).items(), key=lambda item: order.index(item[1][0]["system"])))
    dropouts = sorted({record["dropout"] for record in records})
    for axis, workload in zip(axes, dict.fromkeys(record["workload"] for record in records), strict=False):
        for place, dropout in enumerate(dropouts):
            own = {
                index: record
                for index, found in enumerate(named.values())
                for record in found
                if record["workload"] == workload and record["dropout"] == dropout
            }
            spots, heights = [index + 0.4 * place for index in own], [record["tokens_per_s"] for record in own.values()]
            bars = axis.barh(spots, heights, height=0.38, label=f"dropout {dropout:g}")
            labels = [f"{record['tokens_per_s']:,.0f}{' *' * ('note' in record)}" for record in own.values()]
            axis.bar_label(bars, labels=labels, fontsize=7, padding=2)
        for index, found in enumerate(named.values()):
            if not any(record["workload"] == workload for record in found):
                axis.text(0, index + 0.2 * (len(dropouts) - 1), "  not run", fontsize=7, va="center")
        axis.set_yticks([index + 0.2 * (len(dropouts) - 1) for index in range(len(named))], list(named))
        axis.invert_yaxis()
        axis.set_title(workload)
        axis.set_xlabel("real tokens/s")
        axis.locator_params(axis="x", nbins=5)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.margins(x=0.12)
    if any("note" in record for record in records):
        axes[0].figure.text(0.01, 0.01, "* see `note` in the JSON file", fontsize=8)
    # Above the bars: inside, it would hide some of them.
    axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="upper right", ncols=len(dropouts), fontsize=8)


def _by_name(records: Sequence[Record]) -> dict[str, list[Record]]:
    # Attention and recomputation are told where a system has more than one.
    named: dict[str, list[Record]] = {}
    for record in records:
        own = [other for other in records if other["system"] == record["system"]]
        told = [record[key] for key in ("attention", "recompute") if len({other[key] for other in own}) > 1]
        named.setdefault(", ".join([record["system"], *told]), []).append(record)
    return named


def _one_record_a_line(document: dict[str, Any]) -> str:
    head = json.dumps({key: value for key, value in document.items() if key != "records"}, indent=1)
    lines = ",\n".join("  " + json.dumps(record) for record in document["records"])
    return head[:-2] + ',\n "records": [\n' + lines + "\n ]\n}\n"
