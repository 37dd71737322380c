"""The picture of a planner benchmark: gap and time of every strategy, workload by workload."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bench import BenchResult

_LOOKS = {
    "auto": ("#0072B2", "o"),
    "stream": ("#56B4E9", "."),
    "greedy": ("#E69F00", "."),
    "milp": ("#009E73", "."),
    "published": ("#D55E00", "x"),
}
"""Colours told apart by colour-blind eyes (Okabe and Ito)."""


def plot_bench(result: "BenchResult", path: Path) -> None:
    """Write a PNG: slots over the lower bound above processor seconds; workloads by region, then by the gap of auto."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    regions = ("volume", "between", "chain")
    auto = sorted(
        (entry for entry in result.records if entry.strategy == "auto"),
        key=lambda entry: (regions.index(entry.region), entry.gap, entry.workload, entry.num_stages),
    )
    places = {(entry.workload, entry.num_stages): place for place, entry in enumerate(auto)}
    figure, (above, below) = plt.subplots(2, 1, figsize=(12, 7.5), sharex=True, layout="constrained")
    for strategy, (colour, marker) in reversed(_LOOKS.items()):
        chosen = [entry for entry in result.records if entry.strategy == strategy]
        across = [places[entry.workload, entry.num_stages] for entry in chosen]
        size = 14 if strategy == "auto" else 18
        for axes, heights in (
            (above, [100 * entry.gap for entry in chosen]),
            (below, [max(entry.cpu_seconds, 1e-4) for entry in chosen]),
        ):
            axes.scatter(across, heights, s=size, c=colour, marker=marker, linewidths=0.8, label=strategy)
    _dress(above, below, result=result, regions=[entry.region for entry in auto])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _dress(above: Any, below: Any, *, result: "BenchResult", regions: list[str]) -> None:
    above.set_yscale("symlog", linthresh=1)
    above.set_ylim(-0.1, None)
    above.set_yticks([0, 0.5, 1, 2, 5, 10, 20, 50, 100], ["0", "0.5", "1", "2", "5", "10", "20", "50", "100"])
    above.set_ylabel("slots above the lower bound, %")
    load = f"load {result.load_average:g}"
    above.set_title(f"{len(regions)} workloads, {result.date}, {result.machine}, {load}; {result.command}", fontsize=9)
    below.set_yscale("log")
    below.set_ylabel("seconds of processor time to plan")
    below.set_xlabel("workloads, by region and by the gap of auto")
    for axes in (above, below):
        axes.grid(axis="y", alpha=0.3)
        axes.margins(x=0.01)
    handles, labels = above.get_legend_handles_labels()
    above.legend(handles[::-1], labels[::-1], ncols=5, fontsize=9, loc="upper left")
    names = {"volume": "volume binds", "between": "between", "chain": "chain binds"}
    for region in dict.fromkeys(regions):
        first = regions.index(region)
        count = regions.count(region)
        for axes in (above, below):
            axes.axvline(first - 0.5, color="black", linewidth=0.8)
        below.text(first + count / 2, 1.02, names[region], transform=below.get_xaxis_transform(), ha="center")
