"""Token lengths: a user's CSV, the shipped tables, and draws that follow them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loraplex.traces.errors import TraceError
from loraplex.traces.workloads import (
    DATASETS,
    LengthTable,
    length_table,
    make_length_table,
    read_lengths,
    sample_lengths,
    write_length_table,
)

ROOT = Path(__file__).resolve().parents[2]


def test_a_csv_is_read_in_file_order(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\ufeffname,num_tokens\nx, 12 \ny,3\n\nz,500\n", encoding="utf-8")
    assert read_lengths(tmp_path / "a.csv") == (12, 3, 500)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_tokens\n5\n0\n", "line 3: num_tokens=0 must be at least 1"),
        ("num_tokens\n-7\n", "line 2: num_tokens=-7 must be at least 1"),
        ("num_tokens\n1234567890\n", "line 2: num_tokens=1234567890 must have at most 9 digits"),
        (f"num_tokens\n{'9' * 5000}\n", f"line 2: num_tokens={'9' * 20} must have at most 9 digits"),
        ("num_tokens\n5\nnan\n", "line 3: num_tokens='nan' must be a whole number"),
        ("num_tokens\n12.5\n", "line 2: num_tokens='12.5' must be a whole number"),
        ("num_tokens\n1e3\n", "line 2: num_tokens='1e3' must be a whole number"),
        ('a,num_tokens\n1,""\n', "line 2: num_tokens='' must be a whole number"),
        ("a,num_tokens\n1\n", "line 2: num_tokens='' must be a whole number"),
        ("tokens\n5\n", "has the columns ['tokens']; one must be called num_tokens"),
        ("", "has the columns []"),
        ("num_tokens\n", "has no rows below its header"),
    ],
)
def test_a_bad_csv_is_told_file_line_and_value(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(TraceError) as caught:
        read_lengths(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read"):
        read_lengths(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"num_tokens\n\xff\xfe\n")
    with pytest.raises(TraceError, match="is no CSV in UTF-8"):
        read_lengths(tmp_path / "binary.csv")


@pytest.mark.parametrize(
    ("dataset", "num_samples"),
    tuple(zip(DATASETS, (28257, 4535, 12460, 7473, 1576, 3229), strict=True)),
)
def test_shipped_tables_name_their_source(dataset: str, num_samples: int) -> None:
    table = length_table(dataset)
    assert (table.dataset, table.num_samples, table.tokenizer) == (dataset, num_samples, "Llama 3")
    assert table.source
    assert table.quantiles == tuple(sorted(table.quantiles))


@pytest.mark.parametrize("dataset", DATASETS)
def test_draws_follow_the_table_within_one_percent_of_the_place(dataset: str) -> None:
    quantiles = np.array(length_table(dataset).quantiles)
    drawn = np.array(sample_lengths(dataset, num_samples=100_000, seed=7))
    places = np.arange(10, 991, 10)
    found = np.quantile(drawn, places / 1000, method="lower")
    assert (quantiles[places - 10] <= found).all()
    assert (found <= quantiles[places + 10]).all()
    assert drawn.mean() == pytest.approx(length_table(dataset).mean_tokens, rel=0.02)
    assert quantiles[0] <= drawn.min() <= drawn.max() <= quantiles[-1]


def test_the_same_seed_gives_the_same_draws_and_another_gives_others() -> None:
    first = sample_lengths("gsm8k", num_samples=50, seed=3)
    assert sample_lengths("gsm8k", num_samples=50, seed=3) == first
    assert sample_lengths("gsm8k", num_samples=50, seed=4) != first
    # More draws of one seed begin with the same ones.
    assert sample_lengths("gsm8k", num_samples=80, seed=3)[:50] == first


def test_a_table_of_own_lengths_keeps_quantiles_only(tmp_path: Path) -> None:
    table = make_length_table(range(1, 2002), dataset="mine", source="counting", tokenizer="fingers")
    assert table == LengthTable(
        dataset="mine",
        source="counting",
        tokenizer="fingers",
        num_samples=2001,
        mean_tokens=1001.0,
        quantiles=tuple(range(1, 2002, 2)),
    )
    write_length_table(table, tmp_path / "mine.json")
    assert length_table(str(tmp_path / "mine.json")) == table
    assert len(sample_lengths(str(tmp_path / "mine.json"), num_samples=5, seed=0)) == 5


def test_the_module_makes_a_table_from_a_csv(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("num_tokens\n" + "\n".join(map(str, range(1, 12))))
    output = tmp_path / "lengths-mine.json"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "loraplex.traces.workloads",
            "in.csv",
            "--source",
            "s",
            "--tokenizer",
            "t",
            "-o",
            output,
        ],
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT / ".pythonpath")},
    )
    table = length_table(str(output))
    assert (table.dataset, table.source, table.tokenizer, table.num_samples) == ("mine", "s", "t", 11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "is no length table"),
        ({"quantiles": [1, 2]}, "must be a list of 1001"),
        ({"quantiles": list(range(1001))}, "above zero in rising order"),
        ({"quantiles": list(range(1001, 0, -1))}, "above zero in rising order"),
    ],
)
def test_a_bad_table_is_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    write_length_table(make_length_table([1, 2], dataset="", source="", tokenizer=""), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(TraceError, match=message):
        length_table(str(path))


def test_unknown_data_sets_and_counts_are_refused() -> None:
    with pytest.raises(TraceError, match="dataset='gsm9k' must be one of"):
        length_table("gsm9k")
    with pytest.raises(TraceError, match="cannot be read"):
        length_table("none.json")
    with pytest.raises(TraceError, match="num_samples=0"):
        sample_lengths("gsm8k", num_samples=0, seed=0)
