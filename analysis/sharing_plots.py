"""The pictures of `loraplex bench sharing`: where one pipeline for all adapters beats one adapter after another."""

from pathlib import Path

import pandas as pd

from .charts import plot_bars, plot_curves


def plot_sharing(*, systems: pd.DataFrame, curves: pd.DataFrame, folder: Path) -> None:
    """Pictures from the tables that simulator/sharing.py makes (SystemPoint and SharingPoint, one a row)."""
    plot_bars(
        _by(systems, "speedup"),
        folder / "sharing-systems",
        y_label="throughput over sequential-fixed [x]",
        title="Four adapters on four stages, global batches of 16",
    )
    plot_bars(
        _by(systems, "bubble_ratio"),
        folder / "sharing-bubbles",
        y_label="bubble ratio [share of all stages' time]",
        title="Bubble ratio of the same runs",
    )
    four = curves[curves["num_adapters"] == 4]
    for name in ("mixed", "even"):
        plot_curves(
            {
                f"{num_stages} stages": _points(
                    four[(four["workload"] == name) & (four["num_stages"] == num_stages)],
                    "global_batch_size",
                    "speedup",
                )
                for num_stages in (2, 4, 8)
            },
            folder / f"sharing-batch-{name}",
            x_label="samples in a global batch of each adapter",
            y_label="throughput together / apart [x]",
            title=f"Four adapters, {name} lengths",
            log_x=True,
            level=1.0,
        )
    at_16 = curves[(curves["num_stages"] == 4) & (curves["global_batch_size"] == 16)]
    for value, label, title in (
        ("speedup", "throughput together / apart [x]", "More adapters fill the pipeline"),
        ("mean_completion_ratio", "mean time until done, together / apart [x]", "What the first to finish pay"),
    ):
        plot_curves(
            {name: _points(at_16[at_16["workload"] == name], "num_adapters", value) for name in ("mixed", "even")},
            folder / f"sharing-adapters-{value}",
            x_label="adapters, four stages, global batches of 16",
            y_label=label,
            title=title,
            log_x=True,
            level=1.0,
        )


def _by(systems: pd.DataFrame, value: str) -> dict[str, dict[str, float]]:
    return {
        str(name): dict(zip(own["system"], own[value].astype(float), strict=True))
        for name, own in systems.groupby("workload", sort=False)
    }


def _points(rows: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    return rows[[x, y]].rename(columns={x: "x", y: "y"}).sort_values("x")
