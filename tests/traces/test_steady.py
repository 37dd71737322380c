"""What work takes longer outside of rounds, on points of known costs."""

import pytest

from loraplex.traces.costs import CostTerms
from loraplex.traces.fit_layers import LayerFit
from loraplex.traces.profile_points import points_table
from loraplex.traces.steady import steady_factor

FITTED = LayerFit(layer=CostTerms(per_token_ms=1e-3, floor_ms=2.0))
Row = dict[str, object]


def points(tokens: int, *, factor: float, condition: int = 0) -> list[Row]:
    """Rounds that met a higher clock than most, and a steady stretch that takes `factor` times what was fitted."""
    layers, load = 4, {"tokens": tokens, "squares": 0, "targets": 1, "adapters": 2, "dropped": 0}
    own: Row = {"pass": "forward", "recompute": "none", "layers": layers, "condition": condition, **load}
    ms = layers * max(2.0, 1e-3 * tokens)
    return [own | {"piece": "stage", "ms": 0.9 * ms}, own | {"piece": "steady", "ms": factor * ms}]


def factor_of(*rows: Row) -> float | None:
    return steady_factor(points_table(rows), FITTED)


def test_a_stretch_is_held_against_what_was_fitted_to_all_rounds() -> None:
    rows = points(8000, factor=1.04)
    assert factor_of(*rows) == pytest.approx(1.04)
    # In sum, so that long passes count more.
    both = factor_of(*points(4000, factor=1.0), *points(12000, factor=1.04, condition=1))
    assert both == pytest.approx(1.03)
    # What the same microbatch took in the rounds depends on its neighbours there.
    assert factor_of(rows[1]) == factor_of(*rows)


def test_what_waits_for_its_launches_does_not_count() -> None:
    assert factor_of(*points(500, factor=1.5)) == 1.0
    assert factor_of(*points(500, factor=1.5), *points(8000, factor=1.1, condition=1)) == pytest.approx(1.1)


def test_nothing_is_faster_for_resting_less() -> None:
    assert factor_of(*points(8000, factor=0.99)) == 1.0


def test_without_a_stretch_there_is_no_factor() -> None:
    assert factor_of(points(8000, factor=1.0)[0]) is None
