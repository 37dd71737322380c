"""From raw points (profile_points.py) to the costs of a profile, and how well those foretell points not fitted to.

The layer as it runs is what counts, so it is fitted whole: attention from its own points, everything else from stages
of several depths. The parts of that rest are then told apart by what was measured without adapters: the linears alone,
and what remains beside them and attention, elementwise. A launch floor is the whole layer's: it stands with its
linears.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from .costs import CostProfile, CostTerms, EndCosts, Float, Kernels, PassCosts
from .fit import TERMS, CostPoints, folds, least_relative, nonnegative
from .fit_layers import LayerFit, fit_layers
from .memory_costs import RecomputeMode
from .profile_points import WHOLE

Pass = Literal["forward", "backward"]
_HELD_OUT_FOLDS = 3
"""A random third of the microbatches is kept out of a fit, each in turn."""
_AGAIN: tuple[RecomputeMode, ...] = ("selective", "full")


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedPass:
    """One pass of every piece."""

    kernels: Kernels
    """How the linears of measured stages were computed."""
    costs: PassCosts
    stage: CostTerms
    recomputation: dict[RecomputeMode, CostTerms]
    """What a layer's backward takes more; empty for the forward."""
    embedding: CostTerms
    head: CostTerms

    def whole(self, recompute: str = "none") -> LayerFit:
        """Layers and stage as they run."""
        more = {str(mode): terms for mode, terms in self.recomputation.items()}.get(recompute, CostTerms())
        return LayerFit(layer=self.costs.layer(self.kernels) + more, stage=self.stage)

    def ms(self, table: pd.DataFrame) -> Float:
        """What rows of whole stages (`stage`, `first`, `last`) take, by these costs."""
        points, layers = _points(table), _layers_of(table)
        found = np.zeros(len(table))
        for mode in table["recompute"].unique():
            own = (table["recompute"] == mode).to_numpy()
            found[own] = self.whole(mode).ms(points.chosen(own), layers=layers[own])
        for piece, terms, column in (("first", self.embedding, "tokens"), ("last", self.head, "targets")):
            own = (table["piece"] == piece).to_numpy()
            found[own] += terms.ms(tokens=table[column].to_numpy()[own], adapters=0.0)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedProfile:
    """The costs in time, and the relative errors of held-out stage passes."""

    forward: FittedPass
    backward: FittedPass
    step_fixed_ms: float
    step_ms_per_layer: float
    errors: pd.Series
    """One a row of a whole stage: foretold over measured, minus 1, by a fit that had not seen its microbatch."""

    def onto(self, profile: CostProfile) -> CostProfile:
        """The profile with these costs and errors in it."""
        sizes = self.errors.abs()
        return replace(
            profile,
            forward=self.forward.costs,
            backward=self.backward.costs,
            stage_forward=self.forward.stage,
            stage_backward=self.backward.stage,
            recomputation=self.backward.recomputation,
            ends=EndCosts(
                embedding_forward=self.forward.embedding,
                embedding_backward=self.backward.embedding,
                head_forward=self.forward.head,
                head_backward=self.backward.head,
            ),
            step_fixed_ms=self.step_fixed_ms,
            step_ms_per_layer=self.step_ms_per_layer,
            fit_error_median=float(sizes.median()),
            fit_error_worst=float(sizes.max()),
        )


def fit_profile(table: pd.DataFrame, *, kernels: Kernels = "fused") -> FittedProfile:
    """Fit all points; errors are those of each random third of the microbatches, foretold from the other two.

    `kernels` says how the linears of stages with adapters were computed.
    """
    conditions = np.sort(table.loc[table["piece"] == "stage", "condition"].unique())
    whole = table["piece"].isin(WHOLE)
    errors = pd.Series(np.nan, index=table.index[whole], dtype=np.float64)
    for held_out in folds(len(conditions), num_folds=_HELD_OUT_FOLDS):
        out = table["condition"].isin(conditions[held_out])
        # A single microbatch is foretold by itself.
        known = table if held_out.all() else table[~out]
        passes: tuple[Pass, ...] = ("forward", "backward")
        for which in passes:
            rows = table[whole & out & (table["pass"] == which)]
            errors[rows.index] = _fit_pass(known, which, kernels).ms(rows) / rows["ms"].to_numpy() - 1.0
    steps = table[table["piece"] == "step"]
    step_fixed_ms, step_ms_per_layer = _line(_layers_of(steps), steps["ms"].to_numpy())
    return FittedProfile(
        forward=_fit_pass(table, "forward", kernels),
        backward=_fit_pass(table, "backward", kernels),
        step_fixed_ms=step_fixed_ms,
        step_ms_per_layer=step_ms_per_layer,
        errors=errors,
    )


def _fit_pass(table: pd.DataFrame, which: Pass, kernels: Kernels) -> FittedPass:
    own = table[table["pass"] == which]
    stages = own[own["piece"] == "stage"]
    # Its launch is part of the layer's.
    attention = _without_floor(_alone(own, "attention"))
    layer = _layer(stages[stages["recompute"] == "none"], attention)
    fitted = FittedPass(
        kernels=kernels,
        costs=_parts(own, layer, attention, kernels=kernels),
        stage=layer.stage,
        recomputation={},
        embedding=_end(own, "first", by="tokens"),
        head=_end(own, "last", by="targets"),
    )
    return fitted if which == "forward" else replace(fitted, recomputation=_recomputation(stages, fitted.whole()))


def _parts(own: pd.DataFrame, layer: LayerFit, attention: CostTerms, *, kernels: Kernels) -> PassCosts:
    frozen_rows = own[own["piece"] == "frozen"]
    if not len(frozen_rows):
        return PassCosts(linears={kernels: layer.layer}, attention=attention)
    frozen, alone = _layer(frozen_rows, attention).layer, _alone(own, "linears-frozen")
    # Never more than either layer has beside attention, so that every layer still adds up.
    elementwise = _without_floor(
        _each(np.minimum, _each(np.subtract, frozen, alone), _each(np.minimum, layer.layer, frozen))
    )
    linears: dict[Kernels, CostTerms] = {
        "frozen": _each(np.subtract, frozen, elementwise),
        kernels: _each(np.subtract, layer.layer, elementwise),
    }
    if kernels != "eager" and (own["piece"] == "linears-eager").any():
        # What stands around eager linears is launched in the time that it takes around frozen ones.
        around = max(0.0, frozen.floor_ms - alone.floor_ms)
        linears["eager"] = _alone(own, "linears-eager") + CostTerms(floor_ms=around)
    return PassCosts(linears=linears, attention=attention, elementwise=elementwise)


def _recomputation(stages: pd.DataFrame, plain: LayerFit) -> dict[RecomputeMode, CostTerms]:
    found = {}
    for mode in _AGAIN:
        rows = stages[stages["recompute"] == mode]
        if len(rows):
            found[mode] = fit_layers(_points(rows), layers=_layers_of(rows), known=plain, beside=False).layer
    return found


def _end(own: pd.DataFrame, piece: str, *, by: str) -> CostTerms:
    # What the same microbatch takes more than in a stage of the same depth without the end. Sometimes less, so errors
    # count relative to the whole.
    plain = own[(own["piece"] == "stage") & (own["recompute"] == "none")]
    both = own[own["piece"] == piece].merge(
        plain[["condition", "layers", "ms"]], on=["condition", "layers"], suffixes=("", "_plain")
    )
    whole, more = both["ms"].to_numpy(), (both["ms"] - both["ms_plain"]).to_numpy()
    columns = np.stack([np.ones(len(both)), both[by].to_numpy()], axis=1)
    fixed, token = nonnegative(columns / whole[:, None], more / whole).tolist()
    return CostTerms(fixed_ms=fixed, per_token_ms=token)


def _alone(own: pd.DataFrame, piece: str) -> CostTerms:
    rows = own[own["piece"] == piece]
    if not len(rows):
        return CostTerms()
    return fit_layers(_points(rows), layers=_layers_of(rows), beside=False).layer


def _layer(rows: pd.DataFrame, attention: CostTerms) -> LayerFit:
    terms = [name for name in TERMS if name != "per_square_ms" or not attention.per_square_ms]
    return fit_layers(_points(rows), layers=_layers_of(rows), known=LayerFit(layer=attention), terms=terms)


def _points(rows: pd.DataFrame) -> CostPoints:
    return CostPoints.of(**{name: rows[name].to_numpy() for name in ("tokens", "squares", "adapters", "dropped", "ms")})


def _layers_of(rows: pd.DataFrame) -> Float:
    return rows["layers"].to_numpy(dtype=np.float64)


def _each(operation: Callable[[float, float], float], left: CostTerms, right: CostTerms) -> CostTerms:
    # Term by term, nothing below zero.
    names = CostTerms.__dataclass_fields__
    return CostTerms(**{name: max(0.0, float(operation(getattr(left, name), getattr(right, name)))) for name in names})


def _without_floor(terms: CostTerms) -> CostTerms:
    return replace(terms, floor_ms=0.0, floor_per_adapter_ms=0.0)


def _line(layers: Float, ms: Float) -> tuple[float, float]:
    # A fixed part and one by layers, neither negative.
    if not len(ms):
        return 0.0, 0.0
    fixed, each = least_relative(np.stack([np.ones(len(ms)), layers], axis=1), ms).tolist()
    return fixed, each
