"""Fitting cost terms to measured points."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex.traces.costs import CostTerms
from loraplex.traces.errors import TraceError
from loraplex.traces.fit import CostPoints, fit, fit_terms, predicted_ms


def points(terms: CostTerms, *, count: int = 40, noise: float = 0.0, seed: int = 0) -> CostPoints:
    random = np.random.default_rng(seed)
    tokens = random.integers(64, 8192, count)
    squares = tokens * random.integers(32, 4096, count)
    adapters = random.integers(1, 9, count)
    ms = terms.ms(tokens=tokens, squares=squares, adapters=adapters) * np.exp(noise * random.standard_normal(count))
    return CostPoints.of(tokens=tokens, squares=squares, adapters=adapters, ms=ms)


costs = st.floats(0, 10)


@given(fixed=costs, token=costs, square=costs, adapter=costs)
def test_exact_points_give_the_terms_back(fixed: float, token: float, square: float, adapter: float) -> None:
    terms = CostTerms(
        fixed_ms=fixed + 0.1, per_token_ms=token * 1e-3, per_square_ms=square * 1e-7, per_adapter_ms=adapter
    )
    known = points(terms)
    assert predicted_ms(fit_terms(known), known) == pytest.approx(known.ms, rel=1e-6)


def test_no_term_is_ever_negative() -> None:
    # Cost falls with tokens here: the best allowed answer is a constant.
    found = fit_terms(CostPoints.of(tokens=[100, 200, 300], ms=[3.0, 2.0, 1.0]))
    assert (found.per_token_ms, found.per_square_ms, found.per_adapter_ms) == (0.0, 0.0, 0.0)
    assert 1.0 < found.fixed_ms < 2.0


def test_small_microbatches_weigh_as_much_as_large_ones() -> None:
    # One constant for 1 ms and 3 ms: least relative error lies at 1.2, least absolute error at 2.
    found = fit_terms(CostPoints.of(tokens=[100, 100], ms=[1.0, 3.0]))
    assert found.ms(tokens=100) == pytest.approx(1.2)


def test_errors_are_those_of_points_the_fit_has_not_seen() -> None:
    terms = CostTerms(fixed_ms=0.5, per_token_ms=1e-3, per_square_ms=1e-7)
    assert fit(points(terms)).error_worst < 1e-9
    noisy = fit(points(terms, noise=0.05, seed=3))
    assert 0.02 < noisy.error_median < 0.06 < noisy.error_worst < 0.3
    # Three points, one of them off: each is foretold by the other two.
    few = fit(CostPoints.of(tokens=[100, 200, 400], ms=[1.0, 2.0, 8.0]))
    assert few.error_worst == pytest.approx(0.5)


def test_a_single_point_is_foretold_by_itself() -> None:
    assert fit(CostPoints.of(tokens=[100], ms=[2.0])).error_worst == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("tokens", "ms", "message"),
    [
        ([1, 2], [1.0, -1.0], "point 1: ms=-1.0"),
        ([1, 2], [1.0, float("nan")], "point 1: ms=nan"),
        ([1, 2], [0.0, 1.0], "point 0: ms=0 measures nothing"),
        ([0, 2], [1.0, 1.0], "point 0: tokens=0 measures nothing"),
    ],
)
def test_impossible_points_are_named(tokens: list[int], ms: list[float], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        CostPoints.of(tokens=tokens, ms=ms)


def test_a_fit_needs_points() -> None:
    with pytest.raises(TraceError, match="0 points"):
        fit_terms(CostPoints.of(tokens=[], ms=[]))
