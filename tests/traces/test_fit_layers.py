"""Stages of several depths, with launch floors, back into the cost of a layer and of what stands beside the layers."""

from dataclasses import replace

import numpy as np
import pytest

from loraplex.traces.costs import CostTerms
from loraplex.traces.errors import TraceError
from loraplex.traces.fit import CostPoints, Float
from loraplex.traces.fit_layers import LayerFit, fit_layers

LAYER = CostTerms(
    fixed_ms=0.05,
    per_token_ms=6e-4,
    per_adapter_ms=0.01,
    per_dropped_ms=4e-5,
    floor_ms=0.4,
    floor_per_adapter_ms=0.02,
)
STAGE = CostTerms(fixed_ms=0.1, per_token_ms=1e-5, floor_ms=0.3)
ATTENTION = LayerFit(layer=CostTerms(fixed_ms=0.02, per_token_ms=1e-5, per_square_ms=1.5e-8))
NOT_BY_SQUARES = ("fixed_ms", "per_token_ms", "per_adapter_ms", "per_dropped_ms")


def measured(
    fit: LayerFit,
    *,
    noise: float = 0.0,
    count: int = 60,
    seed: int = 0,
    ahead_ms: float | None = None,
    smallest: int = 256,
    replayed: int = 0,
) -> tuple[CostPoints, Float]:
    """Stages of 2 and of 4 layers over microbatches of up to 16384 tokens; with `ahead_ms`, that much work is left
    before them on the average, else more than any waits for. Those of up to `replayed` tokens are, every other one."""
    random = np.random.default_rng(seed)
    tokens = np.exp(random.uniform(np.log(smallest), np.log(16384), count)).round()
    points = CostPoints(
        tokens=tokens,
        squares=tokens * random.integers(64, 8192, count),
        adapters=random.integers(1, 17, count).astype(float),
        dropped=tokens * random.integers(0, 2, count),
        closes=random.integers(0, 5, count).astype(float),
        replayed=((tokens <= replayed) & (np.arange(count) % 2 > 0)).astype(float),
        ms=np.ones(count),
        ahead_ms=np.full(count, np.inf) if ahead_ms is None else ahead_ms * random.uniform(0.0, 2.0, count),
    )
    layers = np.where(np.arange(count) % 3, 2.0, 4.0)
    ms = (fit + ATTENTION).ms(points, layers=layers) * np.exp(noise * random.standard_normal(count))
    return replace(points, ms=ms), layers


def test_exact_stages_give_layer_stage_and_floors_back() -> None:
    points, layers = measured(LayerFit(layer=LAYER, stage=STAGE))
    found = fit_layers(points, layers=layers, known=ATTENTION, terms=NOT_BY_SQUARES)
    for name in LAYER.__dataclass_fields__:
        assert getattr(found.layer, name) == pytest.approx(getattr(LAYER, name), rel=1e-6, abs=1e-12), name
        assert getattr(found.stage, name) == pytest.approx(getattr(STAGE, name), rel=1e-6, abs=1e-12), name


def test_what_is_replayed_has_floors_of_its_own_and_the_same_work() -> None:
    floors = {"replay_floor_ms": 0.2, "replay_floor_per_layer_ms": 0.12}
    planted = LayerFit(layer=LAYER, stage=STAGE, close_floor_ms=0.1, **floors)
    points, layers = measured(planted, ahead_ms=0.2, count=200, smallest=64, replayed=1536)
    own = points.replayed > 0
    work, floor = planted.work_ms(points, layers=layers), planted.floor_ms(points, layers=layers)
    # Both ways of launching are met with and without work that takes longer, and only one waits for its first launch.
    for ones in (own, ~own):
        assert {True, False} <= set((work[ones] > floor[ones]).tolist())
    assert planted.waits_ms(points)[own].max() == 0.0 < planted.waits_ms(points)[~own].max()
    found = fit_layers(points, layers=layers, known=ATTENTION, terms=NOT_BY_SQUARES)
    for name, wanted in floors.items():
        assert getattr(found, name) == pytest.approx(wanted, rel=1e-6), name
    for name in LAYER.__dataclass_fields__:
        assert getattr(found.layer, name) == pytest.approx(getattr(LAYER, name), rel=1e-6, abs=1e-12), name
        assert getattr(found.stage, name) == pytest.approx(getattr(STAGE, name), rel=1e-6, abs=1e-12), name


def test_work_that_waits_for_its_first_launch_is_told_from_more_work() -> None:
    points, layers = measured(LayerFit(layer=LAYER, stage=STAGE), ahead_ms=0.2)
    found = fit_layers(points, layers=layers, known=ATTENTION, terms=NOT_BY_SQUARES)
    waits = found.waits_ms(points)
    # With nothing ahead as long as what is launched beside the layers, with more than that ahead not at all.
    assert waits == pytest.approx(np.maximum(0.0, 0.3 - points.ahead_ms), abs=1e-6)
    assert (waits == 0).any()
    assert (waits > 0.2).any()
    for name in LAYER.__dataclass_fields__:
        assert getattr(found.layer, name) == pytest.approx(getattr(LAYER, name), rel=1e-6, abs=1e-9), name
    # Fitted as if nothing waited, the same stages cost more.
    blind = fit_layers(
        replace(points, ahead_ms=np.full(60, np.inf)), layers=layers, known=ATTENTION, terms=NOT_BY_SQUARES
    )
    assert np.abs((blind + ATTENTION).ms(points, layers=layers) / points.ms - 1).max() > 0.02


def test_ends_of_global_batches_are_told_from_adapters() -> None:
    given = LayerFit(layer=LAYER, stage=STAGE, close_ms=0.2, close_floor_ms=0.9)
    points, layers = measured(given)
    found = fit_layers(points, layers=layers, known=ATTENTION, terms=NOT_BY_SQUARES)
    assert (found.close_ms, found.close_floor_ms) == pytest.approx((0.2, 0.9))
    assert found.layer.floor_per_adapter_ms == pytest.approx(LAYER.floor_per_adapter_ms)


def test_where_one_launch_serves_all_adapters_the_floor_knows_none() -> None:
    flat = replace(LAYER, floor_per_adapter_ms=0.0)
    points, layers = measured(LayerFit(layer=flat, stage=STAGE), noise=0.02)
    found = fit_layers(points, layers=layers, known=ATTENTION, terms=NOT_BY_SQUARES, by_adapters=False)
    assert found.layer.floor_per_adapter_ms == 0.0
    assert found.layer.floor_ms == pytest.approx(flat.floor_ms, rel=0.1)


def test_a_layer_may_be_a_multiple_of_known_work() -> None:
    points, layers = measured(LayerFit(layer=LAYER.scaled(1.5)), count=12)
    found = fit_layers(points, layers=layers, known=ATTENTION, like=replace(LAYER, floor_ms=9.0), beside=False)
    for name in LAYER.__dataclass_fields__:
        assert getattr(found.layer, name) == pytest.approx(getattr(LAYER.scaled(1.5), name), rel=1e-6), name


def test_stalls_bend_no_work() -> None:
    points, layers = measured(LayerFit(layer=LAYER, stage=STAGE), noise=0.01, count=90)
    stalled = (points.tokens > 4000) & (np.arange(90) % 10 == 0)
    found = fit_layers(
        replace(points, ms=np.where(stalled, 1.7 * points.ms, points.ms)), layers=layers, known=ATTENTION
    )
    large = points.tokens > 4000
    errors = (found + ATTENTION).ms(points, layers=layers)[large] / points.ms[large] - 1
    assert stalled.sum() > 2
    assert abs(errors.mean()) < 0.005


def test_what_is_not_known_of_attention_is_fitted_by_squares() -> None:
    points, layers = measured(LayerFit(layer=LAYER, stage=STAGE))
    found = fit_layers(points, layers=layers)
    assert found.layer.per_square_ms == pytest.approx(ATTENTION.layer.per_square_ms, rel=1e-6)
    assert found.layer.per_token_ms == pytest.approx(LAYER.per_token_ms + ATTENTION.layer.per_token_ms, rel=1e-6)


def test_without_a_floor_none_is_found() -> None:
    plain = CostTerms(fixed_ms=0.05, per_token_ms=6e-4)
    points, layers = measured(LayerFit(layer=plain, stage=CostTerms()))
    found = fit_layers(points, layers=layers, known=ATTENTION)
    assert (found + ATTENTION).ms(points, layers=layers) == pytest.approx(points.ms, rel=1e-9)
    assert (found.layer.floor_ms, found.stage.floor_ms) == (0.0, 0.0)


def test_noise_stays_noise() -> None:
    points, layers = measured(LayerFit(layer=LAYER, stage=STAGE), noise=0.02, count=90)
    unseen, unseen_layers = measured(LayerFit(layer=LAYER, stage=STAGE), seed=1)
    found = fit_layers(points, layers=layers, known=ATTENTION)
    errors = np.abs((found + ATTENTION).ms(unseen, layers=unseen_layers) / unseen.ms - 1)
    assert np.median(errors) < 0.01
    assert errors.max() < 0.05


def test_a_fit_needs_stages() -> None:
    with pytest.raises(TraceError, match="0 stages were measured"):
        fit_layers(CostPoints.of(tokens=[], ms=[]), layers=np.array([]))
