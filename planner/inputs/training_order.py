"""The order in which an adapter sees its samples: seeded, the same everywhere and for ever, cut into global batches."""

from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np
from numpy.typing import NDArray

_VALIDATION_DRAW = 2**64 - 1
"""Where epochs use their number as the second half of the key, drawing the validation samples uses this."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingOrder:
    """Rows of an adapter's table in the order of training, and the rows kept out of it."""

    rows: NDArray[np.int64]
    """Row of each sample, by the sample's index; a second epoch counts on."""
    batch_sizes: tuple[int, ...]
    """Samples of each global batch, in order; they add up to len(rows)."""
    validation_rows: NDArray[np.int64]


def training_order(
    *,
    num_rows: int,
    global_batch_size: int,
    seed: int,
    num_epochs: int = 1,
    max_steps: int | None = None,
    val_split: float = 0.0,
) -> TrainingOrder:
    """Shuffle and cut `num_rows` samples. Each epoch is a fresh shuffle and ends with its own, maybe shorter, batch.

    With `max_steps`, epochs go on until there are that many global batches and `num_epochs` does not count.
    `val_split` keeps that share of the rows, at least one if it is above 0, out of training. Nothing is left to train
    on when it keeps them all: the caller asks `len(rows)`.
    """
    shuffled = _permutation(num_rows, seed=seed, draw=_VALIDATION_DRAW)
    num_validation = min(num_rows, max(1, round(num_rows * val_split))) if val_split > 0 else 0
    training = np.sort(shuffled[num_validation:])
    epoch_sizes = _batch_sizes(len(training), global_batch_size)
    num_steps = num_epochs * len(epoch_sizes) if max_steps is None else max_steps
    sizes = tuple(islice(cycle(epoch_sizes), num_steps))
    num_drawn = -(-num_steps // len(epoch_sizes)) if epoch_sizes else 0
    epochs = [training[_permutation(len(training), seed=seed, draw=epoch)] for epoch in range(num_drawn)]
    rows = np.concatenate([*epochs, np.empty(0, dtype=np.int64)])[: sum(sizes)]
    return TrainingOrder(rows=rows, batch_sizes=sizes, validation_rows=np.sort(shuffled[:num_validation]))


def _batch_sizes(num_samples: int, global_batch_size: int) -> tuple[int, ...]:
    return tuple(min(global_batch_size, num_samples - first) for first in range(0, num_samples, global_batch_size))


def _permutation(num_rows: int, *, seed: int, draw: int) -> NDArray[np.int64]:
    # numpy keeps a bit generator's raw stream the same over its versions, which it does not promise of shuffle().
    keys = np.random.Philox(key=np.array([seed, draw], dtype=np.uint64)).random_raw(num_rows)
    return np.argsort(keys, kind="stable").astype(np.int64)
