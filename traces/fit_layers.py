"""From measured stages of several depths to the cost of one layer and of what a stage has beside its layers.

A stage of n layers takes max(launching, waiting + work): work grows with tokens, launching (the floor) does not. Which
points are bound by which is found by trying: the smallest microbatches first, then whatever the fit itself says. Where
a microbatch is replayed as CUDA graphs, launching takes as long for any number of layers, and the work as long as ever.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .costs import CostTerms
from .errors import TraceError
from .fit import TERMS, CostPoints, Float, Solver, least_relative, steady_relative

_TURNS = 4
"""Times that points are dealt anew between floor and work; they settle in two or three."""
_CUTS = 10
"""Sizes up to which microbatches are first taken to be bound by their launch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFit:
    """Terms of one layer, and of a stage beside its layers."""

    layer: CostTerms = field(default_factory=CostTerms)
    stage: CostTerms = field(default_factory=CostTerms)
    close_ms: float = 0.0
    """Work of setting an adapter's gradients aside at the end of its global batch, which is part of a backward."""
    close_floor_ms: float = 0.0
    """The time to launch that."""
    replay_floor_ms: float = 0.0
    """The time to launch a stage that is replayed as CUDA graphs, with what surrounds it."""
    replay_floor_per_layer_ms: float = 0.0
    """What each layer takes then at least, however little there is to do."""

    def __add__(self, other: "LayerFit") -> "LayerFit":
        return LayerFit(
            layer=self.layer + other.layer,
            stage=self.stage + other.stage,
            close_ms=self.close_ms + other.close_ms,
            close_floor_ms=self.close_floor_ms + other.close_floor_ms,
            replay_floor_ms=self.replay_floor_ms + other.replay_floor_ms,
            replay_floor_per_layer_ms=self.replay_floor_per_layer_ms + other.replay_floor_per_layer_ms,
        )

    def ms(self, points: CostPoints, *, layers: Float, saved_ms: Float | float = 0.0) -> Float:
        """What stages of so many layers take; `saved_ms` of their work is left out, and takes as long to launch."""
        work = self.waits_ms(points) + self.work_ms(points, layers=layers) - saved_ms
        return np.maximum(work, self.floor_ms(points, layers=layers))

    def waits_ms(self, points: CostPoints) -> Float:
        """How long a GPU that runs out of work waits for a layer's: what stands beside layers is launched first."""
        return np.where(points.replayed > 0, 0.0, np.maximum(0.0, self.stage.floor_ms - points.ahead_ms))

    def ahead_ms(self, points: CostPoints, *, layers: Float) -> Float:
        """The work that is left when all is launched."""
        return np.maximum(0.0, self.work_ms(points, layers=layers) - self.floor_ms(points, layers=layers))

    def work_ms(self, points: CostPoints, *, layers: Float) -> Float:
        """The work of it, however long it takes to launch."""
        features = points.features()
        work = layers * (features @ _coefficients(self.layer)) + features @ _coefficients(self.stage)
        return np.asarray(work + self.close_ms * points.closes, dtype=np.float64)

    def floor_ms(self, points: CostPoints, *, layers: Float) -> Float:
        """The time to launch it."""
        each = self.layer.floor_ms + self.layer.floor_per_adapter_ms * points.adapters
        by_graph = layers * self.replay_floor_per_layer_ms + self.replay_floor_ms
        launched = np.where(points.replayed > 0, by_graph, layers * each + self.stage.floor_ms)
        return np.asarray(launched + self.close_floor_ms * points.closes, dtype=np.float64)


def fit_layers(
    points: CostPoints,
    *,
    layers: Float,
    known: LayerFit | None = None,
    terms: Sequence[str] = TERMS,
    like: CostTerms | None = None,
    beside: bool = True,
    by_adapters: bool = True,
) -> LayerFit:
    """Fit stages of `layers[i]` layers that took `points.ms[i]`: what they take more than `known`.

    `terms` names those of a layer that are fitted (floors always are); with `like`, a layer's work is a multiple of
    these instead; without `beside`, nothing stands beside the layers; without `by_adapters`, as many launches serve all
    adapters as one. Work is fitted by the size of errors, so that a stall bends nothing, launching by their squares,
    since it scatters evenly. Raises TraceError without points.
    """
    if not len(points.ms):
        raise TraceError("0 stages were measured; a fit needs at least one")
    given = known or LayerFit()

    shapes = np.eye(len(TERMS))[[TERMS.index(name) for name in terms]] if like is None else _coefficients(like)[None]

    def fitted(bound: NDArray[np.bool_], solve: Solver) -> LayerFit:
        floor = _fit_floor(points.chosen(bound), layers[bound], given, beside=beside, by_adapters=by_adapters)
        known_ms = given.work_ms(points, layers=layers) + (floor + given).waits_ms(points)
        work = _fit_work(
            points.chosen(~bound), layers[~bound], known_ms[~bound], shapes=shapes, beside=beside, solve=solve
        )
        return work + floor

    def turns(bound: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.bool_], float]]:
        for _ in range(_TURNS):
            whole = fitted(bound, least_relative) + given
            yield bound, float(((whole.ms(points, layers=layers) / points.ms - 1.0) ** 2).sum())
            work_ms = whole.waits_ms(points) + whole.work_ms(points, layers=layers)
            again = whole.floor_ms(points, layers=layers) > work_ms
            if (again == bound).all() or again.all():
                break
            bound = again

    best, best_error = np.zeros(len(points.ms), dtype=bool), np.inf
    # Each way of launching has a size of its own up to which it takes longer than the work.
    for own in (points.replayed == 0, points.replayed > 0):
        others = best & ~own
        for most in _cuts(points.tokens[own]):
            for bound, error in turns(others | (own & (points.tokens <= most))):
                if error < best_error - 1e-12:
                    best, best_error = bound, error
    return fitted(best, steady_relative)


def _cuts(tokens: Float) -> Float:
    # From none on, but not the largest size: something must be left to fit work to.
    sizes = np.unique(tokens)[:-1]
    if not len(sizes):
        return np.zeros(min(1, len(tokens)))
    return np.append(0.0, np.unique(np.quantile(sizes, np.linspace(0.0, 1.0, _CUTS), method="nearest")))


def _fit_work(
    points: CostPoints, layers: Float, known_ms: Float, *, shapes: Float, beside: bool, solve: Solver
) -> LayerFit:
    # shapes [ways, terms]: a layer's work is a sum of multiples of them.
    columns = points.features()
    own = columns @ shapes.T * layers[:, None]
    # Beside the layers a fixed part, one by tokens and one by ends of global batches.
    around = np.concatenate([columns[:, :2], points.closes[:, None]], axis=1)[:, : 3 * beside]
    every = np.concatenate([own, around], axis=1)
    found = solve(every, points.ms, known_ms=known_ms)
    fixed, token, close = found[len(shapes) :].tolist() if beside else (0.0, 0.0, 0.0)
    return LayerFit(
        layer=CostTerms(**dict(zip(TERMS, (found[: len(shapes)] @ shapes).tolist(), strict=True))),
        stage=CostTerms(fixed_ms=fixed, per_token_ms=token),
        close_ms=close,
    )


def _fit_floor(points: CostPoints, layers: Float, known: LayerFit, *, beside: bool, by_adapters: bool) -> LayerFit:
    launched = 1.0 - points.replayed
    each = [layers * launched, layers * points.adapters * launched * by_adapters]
    around = [launched, points.closes, points.replayed, layers * points.replayed]
    columns = np.stack([*each, *(beside * one for one in around)], axis=1)
    known_ms = known.floor_ms(points, layers=layers)
    layer, adapter, stage, close, replay, replay_layer = least_relative(columns, points.ms, known_ms=known_ms).tolist()
    return LayerFit(
        layer=CostTerms(floor_ms=layer, floor_per_adapter_ms=adapter),
        stage=CostTerms(floor_ms=stage),
        close_floor_ms=close,
        replay_floor_ms=replay,
        replay_floor_per_layer_ms=replay_layer,
    )


def _coefficients(terms: CostTerms) -> NDArray[np.float64]:
    return np.array([getattr(terms, name) for name in TERMS])
