"""The tokens of an adapter's files: read, tokenised, held to sequence_len, and checked to hold something to learn."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...traces.counted import counted
from ...traces.workloads import read_lengths
from ..errors import JobError
from .jobfile import DatasetEntry, LongSamples, TextFormat
from .texts import read_examples
from .token_cache import cached_table
from .tokens import Progress, Tokenizer, TokenTable, joined, tokenize

DEMO = "demo:"
DEMO_FOLDER = Path(__file__).parent / "demo"
"""What `demo:NAME` in a job file is relative to."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadTable:
    """The tokens of some files, and how many of their samples were too long."""

    table: TokenTable
    num_truncated: int = 0
    num_skipped: int = 0


def read_table(
    datasets: Sequence[DatasetEntry],
    *,
    folder: Path,
    tokenizer: Tokenizer | None,
    sequence_len: int,
    long_samples: LongSamples = "error",
    random_vocabulary: int | None = None,
    progress: Progress | None = None,
) -> ReadTable:
    """The tokens of all files in order, relative paths taken from `folder`. Raises JobError naming file and line.

    Without a tokenizer only lengths can be read; with `random_vocabulary` they are filled with random tokens.
    """
    if len({entry.type == "lengths" for entry in datasets}) > 1:
        raise JobError(f"{datasets[0].path}: lengths and texts cannot be mixed in one adapter; keep one kind")
    tables = []
    for position, entry in enumerate(datasets):
        path = data_path(entry.path, folder=folder)
        if entry.type == "lengths":
            tables.append(_lengths_table(path, random_vocabulary=random_vocabulary, seed=position))
        else:
            make = partial(_tokenized, path, entry.type, tokenizer, progress)
            tables.append(cached_table(path, tokenizer=tokenizer, data_format=entry.type, make=make))
    table = tables[0] if len(tables) == 1 else joined(tables)
    read = _fitted(table, sequence_len=sequence_len, long_samples=long_samples)
    _check_targets(read, sequence_len=sequence_len)
    return read


def _lengths_table(path: Path, *, random_vocabulary: int | None, seed: int) -> TokenTable:
    lengths = read_lengths(path)
    places = [f"{path}, record {number + 1}" for number in range(len(lengths))]
    if random_vocabulary is None:
        return TokenTable.of_lengths(lengths, places=places)
    return TokenTable.of_random(lengths, places=places, vocabulary=random_vocabulary, seed=seed)


def _tokenized(path: Path, data_format: TextFormat, tokenizer: Tokenizer, progress: Progress | None) -> TokenTable:
    examples = read_examples(path, data_format=data_format)
    return tokenize(examples, tokenizer, progress=progress, label=f"tokenising {path.name}")


def data_path(path: str, *, folder: Path) -> Path:
    """The file a job file's `path` means: a built-in text for `demo:NAME`, else relative to `folder`."""
    if path.startswith(DEMO):
        return DEMO_FOLDER / Path(path.removeprefix(DEMO)).name
    return folder / Path(path).expanduser()


def _fitted(table: TokenTable, *, sequence_len: int, long_samples: LongSamples) -> ReadTable:
    lengths = table.num_tokens()
    is_long = lengths > sequence_len
    num_long = int(is_long.sum())
    if not num_long:
        return ReadTable(table=table)
    worst = int(np.argmax(lengths))
    found = (
        f"{table.places[worst]}: {lengths[worst]} tokens, the most of {num_long} in {counted(len(table), 'sample')} "
        f"that exceed sequence_len={sequence_len}"
    )
    if long_samples == "error":
        raise JobError(f"{found}; raise it, or set long_samples to truncate or skip")
    if long_samples == "skip" and num_long == len(table):
        raise JobError(f"{found}, so that none is left; raise it")
    if long_samples == "skip":
        kept = np.flatnonzero(~is_long)
        return ReadTable(table=_cut(table, kept, lengths), num_skipped=num_long)
    return ReadTable(
        table=_cut(table, np.arange(len(table)), np.minimum(lengths, sequence_len)), num_truncated=num_long
    )


def _cut(table: TokenTable, rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> TokenTable:
    return table.of_rows(zip(rows.tolist(), lengths[rows].tolist(), strict=True))


def _check_targets(read: ReadTable, *, sequence_len: int) -> None:
    table = read.table
    bare = np.flatnonzero(table.num_target_tokens() == 0)
    if len(bare):
        cut = read.num_truncated and bool((table.num_tokens()[bare] == sequence_len).any())
        mend = "raise sequence_len or set long_samples to skip" if cut else "fill them in or remove them"
        raise JobError(
            f"{table.places[bare[0]]}: no target tokens, so there is nothing to learn, and {len(bare)} of {len(table)} "
            f"samples are like that; {mend}"
        )
