"""The order of training: a seeded shuffle per epoch, cut into global batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex.planner.inputs.training_order import TrainingOrder, training_order


def lists(order: TrainingOrder) -> tuple[list[list[int]], list[int]]:
    """The global batches as lists of rows, and the validation rows."""
    ends = np.cumsum(order.batch_sizes).tolist()
    starts = [0, *ends][: len(ends)]
    batches = [order.rows[start:end].tolist() for start, end in zip(starts, ends, strict=True)]
    return batches, order.validation_rows.tolist()


def test_a_small_order_written_out() -> None:
    # Fixed for ever: a plan made today must find the same samples with the numpy of tomorrow.
    order = training_order(num_rows=7, global_batch_size=3, seed=5, num_epochs=2, val_split=0.25)
    assert lists(order) == ([[2, 5, 3], [1, 0], [5, 1, 0], [2, 3]], [4, 6])


@given(
    num_rows=st.integers(1, 40),
    global_batch_size=st.integers(1, 12),
    seed=st.integers(0, 2**63 - 1),
    num_epochs=st.integers(1, 4),
)
def test_each_epoch_holds_every_row_once_and_ends_its_last_batch(
    num_rows: int, global_batch_size: int, seed: int, num_epochs: int
) -> None:
    batches, validation = lists(
        training_order(num_rows=num_rows, global_batch_size=global_batch_size, seed=seed, num_epochs=num_epochs)
    )
    steps = -(-num_rows // global_batch_size)
    assert validation == []
    assert len(batches) == num_epochs * steps
    for first in range(0, len(batches), steps):
        epoch = batches[first : first + steps]
        assert [len(batch) for batch in epoch[:-1]] == [global_batch_size] * (steps - 1)
        assert sorted(row for batch in epoch for row in batch) == list(range(num_rows))


@given(
    num_rows=st.integers(1, 30),
    global_batch_size=st.integers(1, 12),
    seed=st.integers(0, 100),
    max_steps=st.integers(1, 50),
    val_split=st.sampled_from([0.0, 0.01, 0.3, 0.9]),
)
def test_steps_go_on_over_epochs_as_epochs_would(
    num_rows: int, global_batch_size: int, seed: int, max_steps: int, val_split: float
) -> None:
    cut, cut_validation = lists(
        training_order(
            num_rows=num_rows,
            global_batch_size=global_batch_size,
            seed=seed,
            max_steps=max_steps,
            val_split=val_split,
        )
    )
    whole, validation = lists(
        training_order(
            num_rows=num_rows, global_batch_size=global_batch_size, seed=seed, num_epochs=50, val_split=val_split
        )
    )
    assert (cut, cut_validation) == (whole[:max_steps], validation)


@given(
    num_rows=st.integers(1, 60), seed=st.integers(0, 100), val_split=st.floats(0, 1, exclude_min=True, exclude_max=True)
)
def test_validation_rows_are_kept_out_of_training(num_rows: int, seed: int, val_split: float) -> None:
    batches, validation = lists(
        training_order(num_rows=num_rows, global_batch_size=4, seed=seed, num_epochs=2, val_split=val_split)
    )
    assert len(validation) == min(num_rows, max(1, round(num_rows * val_split)))
    assert validation == sorted(set(validation))
    assert {row for batch in batches for row in batch} == set(range(num_rows)) - set(validation)


def test_nothing_to_train_on_gives_no_batches() -> None:
    assert lists(training_order(num_rows=1, global_batch_size=4, seed=0, val_split=0.1)) == ([], [0])
    assert lists(training_order(num_rows=1, global_batch_size=4, seed=0, max_steps=3, val_split=0.1)) == ([], [0])


@pytest.mark.parametrize("other_seed", [1, 2**63 - 1])
def test_another_seed_or_epoch_is_another_order(other_seed: int) -> None:
    first = training_order(num_rows=50, global_batch_size=50, seed=0, num_epochs=2)
    (one, two), _ = lists(first)
    (other, _), _ = lists(training_order(num_rows=50, global_batch_size=50, seed=other_seed, num_epochs=2))
    assert one != two
    assert one != other
    assert lists(first) == lists(training_order(num_rows=50, global_batch_size=50, seed=0, num_epochs=2))


def test_a_shuffle_favours_no_row() -> None:
    # Over many seeds each row comes first about equally often (5 standard deviations of a fair draw).
    firsts = np.array([training_order(num_rows=5, global_batch_size=1, seed=seed).rows[0] for seed in range(2000)])
    counts = np.bincount(firsts, minlength=5)
    assert np.all(np.abs(counts - 400) < 5 * np.sqrt(2000 * 0.2 * 0.8))
