"""Numbers of things in words."""

import pytest

from loraplex.traces.counted import counted


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "stage", "0 stages"),
        (1, "stage", "1 stage"),
        (1, "microbatch", "1 microbatch"),
        (1200, "microbatch", "1,200 microbatches"),
        (2, "worker process", "2 worker processes"),
        (2, "global batch", "2 global batches"),
    ],
)
def test_one_is_not_many(number: int, noun: str, text: str) -> None:
    assert counted(number, noun) == text
