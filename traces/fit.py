"""From measured points to cost terms: non-negative least squares in relative error, and how well it foretells."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .costs import CostTerms
from .errors import TraceError

Float = NDArray[np.float64]
TERMS = ("fixed_ms", "per_token_ms", "per_square_ms", "per_adapter_ms", "per_dropped_ms")
_COLUMNS = ("tokens", "squares", "adapters", "dropped", "closes", "replayed", "ms", "ahead_ms")
NUM_FOLDS = 5
_STEADY_TURNS = 8
_STEADY_ERROR = 0.02
"""Relative errors below it count as in least squares: measured passes scatter by about as much (docs/estimate.md)."""
_ROUNDING = 1e-12
"""Gains below it are none, so that columns that say the same are not split at will."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CostPoints:
    """Measurements of one piece of work, in columns of one length."""

    tokens: Float
    squares: Float
    adapters: Float
    dropped: Float
    """Tokens of adapters with dropout."""
    closes: Float
    """Global batches that end with it."""
    replayed: Float
    """1 where it was replayed as CUDA graphs, 0 where it was launched kernel by kernel."""
    ms: Float
    ahead_ms: Float
    """Ms of work that the GPU had left when it began (`LayerFit.waits_ms`); infinite where it never waits."""

    @classmethod
    def of(
        cls,
        *,
        tokens: ArrayLike,
        ms: ArrayLike,
        squares: ArrayLike = 0.0,
        adapters: ArrayLike = 1.0,
        dropped: ArrayLike = 0.0,
        closes: ArrayLike = 0.0,
        replayed: ArrayLike = 0.0,
        ahead_ms: ArrayLike = np.inf,
    ) -> "CostPoints":
        """Columns from anything array-like. Raises TraceError naming the first point that cannot be."""
        given = (tokens, squares, adapters, dropped, closes, replayed, ms, ahead_ms)
        columns = np.broadcast_arrays(*(np.atleast_1d(np.asarray(held, dtype=np.float64)) for held in given))
        for name, column in zip(_COLUMNS, columns, strict=True):
            bad = np.flatnonzero(~((np.isfinite(column) | (name == "ahead_ms")) & (column >= 0)))
            if len(bad):
                raise TraceError(f"point {bad[0]}: {name}={column[bad[0]]} must be a finite number, not below 0")
        for name, column in (("tokens", columns[0]), ("ms", columns[-2])):
            if (column == 0).any():
                raise TraceError(f"point {int(np.argmin(column))}: {name}=0 measures nothing; leave it out")
        return cls(**dict(zip(_COLUMNS, columns, strict=True)))

    def chosen(self, points: NDArray[np.bool_]) -> "CostPoints":
        """Some of the points."""
        return CostPoints(**{name: getattr(self, name)[points] for name in _COLUMNS})

    def features(self) -> Float:
        """What the terms multiply, one column each, in their order."""
        return np.stack([np.ones_like(self.ms), self.tokens, self.squares, self.adapters, self.dropped], axis=1)


Fitter = Callable[[CostPoints], CostTerms]


class Solver(Protocol):
    """Coefficients of columns from what points took: `least_relative` or `steady_relative`."""

    def __call__(self, columns: Float, ms: Float, *, known_ms: ArrayLike = 0.0) -> Float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Fitted terms, and their relative errors on points that were held out of the fit."""

    terms: CostTerms
    error_median: float
    error_worst: float


def fit_terms(points: CostPoints) -> CostTerms:
    """The terms, none negative, with the smallest sum of squared relative errors.

    Relative, because a microbatch of 100 tokens must be foretold as well as one of 8,000. Raises TraceError without
    points.
    """
    if not len(points.ms):
        raise TraceError("0 points were given; a fit needs at least one")
    found = least_relative(points.features(), points.ms)
    return CostTerms(**dict(zip(TERMS, found.tolist(), strict=True)))


def least_relative(columns: Float, ms: Float, *, known_ms: ArrayLike = 0.0) -> Float:
    """Coefficients of `columns [points, terms]`, none negative, that foretell `ms - known_ms` best relative to `ms`."""
    return nonnegative(*_relative(columns, ms, known_ms))


def steady_relative(columns: Float, ms: Float, *, known_ms: ArrayLike = 0.0) -> Float:
    """As `least_relative`, but errors count by their size and not its square: one stall of the host bends nothing.

    By least squares weighted with one over the size that each error had in the turn before.
    """
    rows, wanted = _relative(columns, ms, known_ms)
    found = nonnegative(rows, wanted)
    for _ in range(_STEADY_TURNS):
        weight = 1.0 / np.sqrt(np.maximum(np.abs(rows @ found - wanted), _STEADY_ERROR))
        found = nonnegative(rows * weight[:, None], wanted * weight)
    return found


def _relative(columns: Float, ms: Float, known_ms: ArrayLike) -> tuple[Float, Float]:
    # What coefficients of the columns are to add up to, each point as a share of what it took.
    return columns / ms[:, None], 1.0 - np.broadcast_to(np.asarray(known_ms, dtype=np.float64), ms.shape) / ms


def nonnegative(rows: Float, wanted: Float) -> Float:
    """The least-squares solution of `rows @ x = wanted` among all x without negative entries.

    By active sets (Lawson and Hanson, "Solving Least Squares Problems", chapter 23): a term comes in while that lowers
    the error by more than rounding, and goes out where it would turn negative.
    """
    scale = np.maximum(np.abs(rows).max(axis=0, initial=0.0), 1e-300)
    scaled = rows / scale
    found, used = np.zeros(rows.shape[1]), np.zeros(rows.shape[1], dtype=bool)
    for _ in range(3 * rows.shape[1]):
        gain = np.where(used, 0.0, scaled.T @ (wanted - scaled @ found))
        if gain.max(initial=0.0) <= _ROUNDING * max(1.0, float(np.abs(wanted).sum())):
            break
        used[int(np.argmax(gain))] = True
        found = _within(scaled, wanted, found, used)
    return np.asarray(found / scale, dtype=np.float64)


def _within(rows: Float, wanted: Float, found: Float, used: NDArray[np.bool_]) -> Float:
    # Towards the best of the terms in use; where one would turn negative on the way, it goes out there.
    while True:
        best = np.zeros_like(found)
        best[used] = np.linalg.lstsq(rows[:, used], wanted, rcond=None)[0]
        below = used & (best <= 0.0)
        if not below.any():
            return best
        share = np.min(found[below] / (found[below] - best[below] + 1e-300))
        found = found + share * (best - found)
        used &= found > _ROUNDING * found.max(initial=0.0)
        found = np.where(used, found, 0.0)
        if not used.any():
            return found


def calibrated(points: CostPoints) -> CostTerms:
    """As `fit_terms`, with the sum over the points right.

    Small relative errors pull a fit below the mean, but a makespan is a sum.
    """
    terms = fit_terms(points)
    return terms.scaled(float(points.ms.sum() / predicted_ms(terms, points).sum()))


def fit(points: CostPoints, *, fitter: Fitter = fit_terms) -> Fit:
    """Terms from all points, and their errors by cross-validation: every point foretold by a fit without it.

    Whatever `fitter` does with points it does without those held out, so that the errors are those of points that it
    has not seen. With a single point, the error is that of its own fit.
    """
    terms = fitter(points)
    foretold = np.empty(len(points.ms))
    for held_out in folds(len(points.ms)):
        known = terms if held_out.all() else fitter(points.chosen(~held_out))
        foretold[held_out] = predicted_ms(known, points.chosen(held_out))
    errors = np.abs(foretold / points.ms - 1.0)
    return Fit(terms=terms, error_median=float(np.median(errors)), error_worst=float(errors.max()))


def folds(count: int, *, num_folds: int = NUM_FOLDS, seed: int = 0) -> Iterator[NDArray[np.bool_]]:
    """Which of `count` points are held out, fold by fold: in turn up to 25 points, else random parts of equal size."""
    fold = np.arange(count) % (count if count <= num_folds**2 else num_folds)
    if count > num_folds**2:
        fold = np.random.default_rng(seed).permutation(fold)
    for held_out in range(int(fold.max(initial=0)) + 1):
        yield fold == held_out


def predicted_ms(terms: CostTerms, points: CostPoints) -> Float:
    """What these terms say the points cost."""
    return terms.ms(tokens=points.tokens, squares=points.squares, adapters=points.adapters, dropped=points.dropped)
