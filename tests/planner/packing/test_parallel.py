"""Work side by side gives the same results in the same order."""

import math

import pytest

from loraplex.planner.errors import PlanError
from loraplex.planner.packing.parallel import side_by_side


@pytest.mark.parametrize(("workers", "backend"), [(1, "loky"), (2, "threading"), (2, "loky")])
def test_results_come_in_the_order_of_the_tasks(workers: int, backend: str) -> None:
    assert list(side_by_side(math.factorial, [5, 3, 0, 4], workers=workers, backend=backend)) == [120, 6, 1, 24]


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(PlanError, match="backend='abacus' is not to be had"):
        list(side_by_side(math.factorial, [1, 2], workers=2, backend="abacus"))
