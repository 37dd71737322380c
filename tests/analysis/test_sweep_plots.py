"""Pictures of sweeps: which fields get which."""

from itertools import product
from pathlib import Path

import pandas as pd

from loraplex.analysis.sweep_plots import plot_sweep

AXES = ["pipeline.stages", "pipeline.microbatch_tokens", "pipeline.schedule", "cluster.contention", "cluster.jitter"]


def table() -> pd.DataFrame:
    """All points of three fields of numbers, one of words, one of truths; the last number never varies."""
    rows: list[tuple[object, ...]] = [
        (stages, tokens, schedule, contention, 0.0, float(stages * tokens - 5 * contention), None)
        for stages, tokens, schedule, contention in product(
            (2, 4, 8), (1024, 2048, 4096), ("1f1b", "gpipe"), (False, True)
        )
    ]
    # A point that could not be run belongs into no picture, nor does its value.
    rows.append((99, 1024, "zb-h1", False, 0.0, float("nan"), "does not fit"))
    return pd.DataFrame(rows, columns=[*AXES, "tokens_per_s", "error"])


def test_numbers_get_lines_choices_bars_and_two_numbers_a_map(tmp_path: Path) -> None:
    written = plot_sweep(table(), AXES, tmp_path)
    assert written == [
        "tokens-per-s-by-pipeline-stages.svg",
        "tokens-per-s-by-pipeline-microbatch_tokens.svg",
        "tokens-per-s-by-pipeline-schedule.svg",
        "tokens-per-s-by-cluster-contention.svg",
        "tokens-per-s-by-pipeline-stages-and-pipeline-microbatch_tokens.svg",
    ]
    texts = {name: (tmp_path / name).read_text(encoding="utf-8") for name in written}
    for name, text in texts.items():
        assert (tmp_path / name).with_suffix(".png").stat().st_size > 1000
        assert "real tokens/s" in text
        assert "zb-h1" not in text
    assert "for each pipeline.microbatch_tokens" in texts[written[0]]
    assert ">pipeline.microbatch_tokens [tokens]<" in texts[written[1]]
    assert ">gpipe<" in texts[written[2]]
    assert ">1f1b<" in texts[written[2]]
    assert ">True<" in texts[written[3]]


def test_a_seed_is_a_choice(tmp_path: Path) -> None:
    renamed = table().rename(columns={"pipeline.stages": "cluster.seed"})
    written = plot_sweep(renamed, ["cluster.seed", *AXES[1:]], tmp_path)
    assert "tokens-per-s-by-cluster-seed.svg" in written
    assert not any("-and-" in name for name in written)
    assert "for each" not in (tmp_path / "tokens-per-s-by-cluster-seed.svg").read_text(encoding="utf-8")


def test_a_sweep_in_which_nothing_varies_or_works_has_no_pictures(tmp_path: Path) -> None:
    one = table().head(1)
    assert plot_sweep(one, AXES, tmp_path) == []
    assert plot_sweep(table().tail(1), AXES, tmp_path) == []
    assert list(tmp_path.iterdir()) == []
