"""Charts of any numbers: both files are there, and labels, names and values appear."""

from pathlib import Path

import pandas as pd

from loraplex.analysis.charts import plot_bars, plot_curves

from .test_plots import written


def test_curves(tmp_path: Path) -> None:
    curve = pd.DataFrame({"x": [1, 2, 4], "y": [1000.0, 1900.0, 3500.0]})
    curves = {"ours": curve, "theirs": curve / 2}
    plot_curves(curves, tmp_path / "curves", x_label="adapters", y_label="speed-up [x]", title="Sharing")
    found = set(written(tmp_path / "curves"))
    assert {"adapters", "speed-up [x]", "Sharing", "ours", "theirs", "3,500"} <= found
    # The three numbers of adapters, and none between them.
    assert {"1", "2", "4"} <= found
    assert not {"1.5", "3", "2.5"} & found


def test_values_too_close_for_labels_of_their_own_get_round_ones(tmp_path: Path) -> None:
    curve = pd.DataFrame({"x": [1, 2, 400], "y": [1.0, 2.0, 3.0]})
    plot_curves({"ours": curve}, tmp_path / "curves", x_label="adapters", y_label="speed-up [x]", title="Sharing")
    assert {"0", "100", "200", "300", "400"} <= set(written(tmp_path / "curves"))


def test_bars_side_by_side(tmp_path: Path) -> None:
    groups = {"short": {"theirs": 1.0, "ours": 1.5}, "long": {"ours": 1.25}}
    plot_bars(groups, tmp_path / "bars", y_label="throughput over theirs [x]", title="Systems")
    found = written(tmp_path / "bars")
    assert {"short", "long", "theirs", "ours", "throughput over theirs [x]", "Systems"} <= set(found)
    assert [found.count(text) for text in ("1.00", "1.50", "1.25")] == [1, 1, 1]
