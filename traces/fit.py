"""From measured points to cost terms: non-negative least squares in relative error, and how well it foretells."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .costs import CostTerms
from .errors import TraceError

Float = NDArray[np.float64]
_TERMS = ("fixed_ms", "per_token_ms", "per_square_ms", "per_adapter_ms")
_FOLDS = 5
_BETTER = 1 - 1e-9
"""A larger set of terms must lower the error by more than rounding, so that constant columns are not split at will."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CostPoints:
    """Measurements of one piece of work, in columns of one length."""

    tokens: Float
    squares: Float
    adapters: Float
    ms: Float

    @classmethod
    def of(
        cls, *, tokens: ArrayLike, ms: ArrayLike, squares: ArrayLike = 0.0, adapters: ArrayLike = 1.0
    ) -> "CostPoints":
        """Columns from anything array-like. Raises TraceError naming the first point that cannot be."""
        columns = np.broadcast_arrays(
            *(np.atleast_1d(np.asarray(held, dtype=np.float64)) for held in (tokens, squares, adapters, ms))
        )
        for name, column in zip(("tokens", "squares", "adapters", "ms"), columns, strict=True):
            bad = np.flatnonzero(~(np.isfinite(column) & (column >= 0)))
            if len(bad):
                raise TraceError(f"point {bad[0]}: {name}={column[bad[0]]} must be a finite number, not below 0")
        for name, column in (("tokens", columns[0]), ("ms", columns[3])):
            if (column == 0).any():
                raise TraceError(f"point {int(np.argmin(column))}: {name}=0 measures nothing; leave it out")
        return cls(tokens=columns[0], squares=columns[1], adapters=columns[2], ms=columns[3])

    def chosen(self, points: NDArray[np.bool_]) -> "CostPoints":
        """Some of the points."""
        return CostPoints(
            tokens=self.tokens[points], squares=self.squares[points], adapters=self.adapters[points], ms=self.ms[points]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Fitted terms, and their relative errors on points that were held out of the fit."""

    terms: CostTerms
    error_median: float
    error_worst: float


def fit_terms(points: CostPoints) -> CostTerms:
    """The terms, none negative, with the smallest sum of squared relative errors.

    Relative, because a microbatch of 100 tokens must be foretold as well as one of 8,000. With four terms the exact
    optimum is the best of the least-squares fits over all sets of terms that come out positive.
    Raises TraceError without points.
    """
    if not len(points.ms):
        raise TraceError("0 points were given; a fit needs at least one")
    columns = np.stack([np.ones_like(points.ms), points.tokens, points.squares, points.adapters], axis=1)
    rows = columns / points.ms[:, None]
    scale = np.maximum(np.abs(rows).max(axis=0), 1e-300)
    best, best_error = np.zeros(len(_TERMS)), float(len(points.ms))
    for size in range(1, len(_TERMS) + 1):
        for chosen in combinations(range(len(_TERMS)), size):
            used = rows[:, chosen] / scale[list(chosen)]
            found = np.linalg.lstsq(used, np.ones(len(rows)), rcond=None)[0]
            error = float(((used @ found - 1.0) ** 2).sum())
            if (found >= 0).all() and error < best_error * _BETTER - 1e-24:
                best, best_error = np.zeros(len(_TERMS)), error
                best[list(chosen)] = found / scale[list(chosen)]
    return CostTerms(**dict(zip(_TERMS, best.tolist(), strict=True)))


def fit(points: CostPoints) -> Fit:
    """Terms from all points, and their errors by cross-validation: every point foretold by a fit without it.

    Points are held out one at a time up to 25 points, in 5 interleaved folds beyond. With a single point, the error is
    that of its own fit.
    """
    terms = fit_terms(points)
    count = len(points.ms)
    folds = np.arange(count) % (count if count <= _FOLDS**2 else _FOLDS)
    foretold = np.empty(count)
    for fold in range(int(folds.max(initial=0)) + 1):
        held_out = folds == fold
        known = terms if held_out.all() else fit_terms(points.chosen(~held_out))
        foretold[held_out] = predicted_ms(known, points.chosen(held_out))
    errors = np.abs(foretold / points.ms - 1.0)
    return Fit(terms=terms, error_median=float(np.median(errors)), error_worst=float(errors.max()))


def predicted_ms(terms: CostTerms, points: CostPoints) -> Float:
    """What these terms say the points cost."""
    return terms.ms(tokens=points.tokens, squares=points.squares, adapters=points.adapters)
