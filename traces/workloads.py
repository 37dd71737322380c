"""Token lengths to plan and simulate with: a user's CSV, or draws that follow a real data set.

What is shipped of the real data sets are quantile tables (data/lengths-*.json), made by `write_length_table`; drawing
from one gives the data set's distribution, not its samples. How to make one from your own lengths:

    python -m loraplex.traces.workloads tickets.csv --source "our tickets" --tokenizer "Llama 3" -o lengths-tickets.json
"""

import argparse
import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import TraceError
from .files import write_atomically

FORMAT = "loraplex-lengths"
VERSION = 1
NUM_QUANTILES = 1001
DATASETS = ("arxiv_sum", "codealpaca", "dialogsum", "gsm8k", "qmsum_span", "scitldr_a")
"""Real data sets whose length tables are shipped."""
_WHOLE = re.compile(r"[+-]?\d+")
_MOST_DIGITS = 9
"""Of a sample's length: more tokens than any model reads, and counts of them still fit 64 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthTable:
    """The distribution of sample lengths of one data set."""

    dataset: str
    source: str
    """The public data set and split, and what was done to it."""
    tokenizer: str
    num_samples: int
    mean_tokens: float
    quantiles: tuple[int, ...]
    """Length in tokens at 0, 1/1000, ..., 1000/1000 of the sorted samples."""


def read_lengths(path: Path | str) -> tuple[int, ...]:
    """Sample lengths from the column `num_tokens` of a CSV, in file order.

    Raises TraceError naming file, line and value where one is not a whole number above zero.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if "num_tokens" not in columns:
                raise TraceError(f"{path}: has the columns {list(columns)}; one must be called num_tokens")
            lengths = tuple(_length(row["num_tokens"], f"{path}, line {reader.line_num}") for row in reader)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror}); give a CSV with a column num_tokens") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: is no CSV in UTF-8 ({error}); give one with a column num_tokens") from error
    if not lengths:
        raise TraceError(f"{path}: has no rows below its header; give at least one sample")
    return lengths


def _length(text: str | None, place: str) -> int:
    value = (text or "").strip()
    if not _WHOLE.fullmatch(value):
        raise TraceError(f"{place}: num_tokens={value!r} must be a whole number of tokens; mend or drop that line")
    if len(value.lstrip("+-0")) > _MOST_DIGITS:
        raise TraceError(f"{place}: num_tokens={value[:20]} must have at most {_MOST_DIGITS} digits; mend that line")
    if int(value) < 1:
        raise TraceError(f"{place}: num_tokens={value} must be at least 1; drop samples without tokens")
    return int(value)


def length_table(dataset: str) -> LengthTable:
    """The table of a shipped data set, or of a file made by `write_length_table`, given by its path."""
    if dataset in DATASETS:
        text = resources.files(__package__).joinpath(f"data/lengths-{dataset}.json").read_text(encoding="utf-8")
        return _table(text, dataset)
    if not dataset.endswith(".json"):
        raise TraceError(f"dataset={dataset!r} must be one of {list(DATASETS)} or a .json file with a length table")
    try:
        return _table(Path(dataset).read_text(encoding="utf-8"), dataset)
    except OSError as error:
        raise TraceError(f"{dataset}: cannot be read ({error.strerror}); give a length table") from error


def _table(text: str, place: str) -> LengthTable:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise TraceError(f"{place}: is no JSON ({error}); make a table with write_length_table") from error
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise TraceError(f"{place}: is no length table of version {VERSION}; make one with write_length_table")
    quantiles = content.get("quantiles")
    if not isinstance(quantiles, list) or len(quantiles) != NUM_QUANTILES:
        raise TraceError(f"{place}: 'quantiles' must be a list of {NUM_QUANTILES} lengths")
    if not all(type(length) is int for length in quantiles) or quantiles != sorted(quantiles) or quantiles[0] < 1:
        raise TraceError(f"{place}: 'quantiles' must be whole numbers above zero in rising order")
    return LengthTable(
        dataset=str(content.get("dataset", "")),
        source=str(content.get("source", "")),
        tokenizer=str(content.get("tokenizer", "")),
        num_samples=int(content.get("num_samples", 0)),
        mean_tokens=float(content.get("mean_tokens", 0.0)),
        quantiles=tuple(quantiles),
    )


def sample_lengths(dataset: str, *, num_samples: int, seed: int) -> tuple[int, ...]:
    """Independent draws that follow a data set's lengths; the same seed gives the same draws.

    Between two neighbouring quantiles all lengths are equally likely. Of 100,000 draws every quantile lies within 1 %
    of its place in the table (tested).
    """
    if num_samples < 1:
        raise TraceError(f"num_samples={num_samples} must be at least 1")
    quantiles = np.array(length_table(dataset).quantiles, dtype=np.float64)
    places = np.random.default_rng(seed).random(num_samples) * (NUM_QUANTILES - 1)
    drawn: NDArray[np.float64] = np.interp(places, np.arange(NUM_QUANTILES), quantiles)
    return tuple(np.rint(drawn).astype(np.int64).tolist())


def make_length_table(lengths: Sequence[int], *, dataset: str, source: str, tokenizer: str) -> LengthTable:
    """The table of these lengths. Nothing but 1,001 quantiles, their number and their mean is kept of them."""
    values = np.asarray(lengths, dtype=np.int64)
    quantiles = np.rint(np.quantile(values, np.linspace(0.0, 1.0, NUM_QUANTILES))).astype(np.int64)
    return LengthTable(
        dataset=dataset,
        source=source,
        tokenizer=tokenizer,
        num_samples=len(values),
        mean_tokens=round(float(values.mean()), 3),
        quantiles=tuple(quantiles.tolist()),
    )


def write_length_table(table: LengthTable, path: Path | str) -> None:
    """Write a table so that `length_table` reads it."""
    content = {"format": FORMAT, "version": VERSION} | {
        name: getattr(table, name) for name in LengthTable.__dataclass_fields__
    }
    write_atomically(path, json.dumps(content) + "\n")


def _main() -> None:
    parser = argparse.ArgumentParser(description="Make a length table from a CSV with a column num_tokens.")
    parser.add_argument("csv", type=Path)
    parser.add_argument("--source", required=True, help="where the samples come from")
    parser.add_argument("--tokenizer", required=True, help="what counted the tokens")
    parser.add_argument("--output", "-o", type=Path, required=True)
    given = parser.parse_args()
    name = given.output.stem.removeprefix("lengths-")
    table = make_length_table(read_lengths(given.csv), dataset=name, source=given.source, tokenizer=given.tokenizer)
    write_length_table(table, given.output)


if __name__ == "__main__":
    _main()
