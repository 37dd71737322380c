"""From raw points (profile_points.py) to the costs of a profile, and how well those foretell points not fitted to.

The layer as it runs is what counts, so it is fitted whole, from stages of several depths. Its parts are then told
apart: what grows with the squares is attention, what else attention takes is what it took alone; without adapters the
linears alone were measured, and what remains beside them and attention is elementwise. A launch floor is the whole
layer's: it stands with its linears. A forward waits for its first launch where the backward before it leaves the GPU no
work. All of that is fitted to rounds; work, and not launching, is then slowed to what it takes on a GPU that has been
at it for seconds (steady.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from .costs import CostProfile, CostTerms, EndCosts, Float, Kernels, PassCosts
from .fit import TERMS, CostPoints, folds, least_relative, nonnegative, steady_relative
from .fit_error import FitError, errors_by_size
from .fit_layers import LayerFit, fit_layers
from .memory_costs import RecomputeMode
from .profile_points import WHOLE
from .steady import slowed, steady_factor

Pass = Literal["forward", "backward"]
_HELD_OUT_FOLDS = 3
"""A random third of the microbatches is kept out of a fit, each in turn."""
_BY_TOKEN = ("fixed_ms", "per_token_ms")
_BY_LENGTH = (*_BY_TOKEN, "per_square_ms")
_AGAIN: tuple[RecomputeMode, ...] = ("selective", "full")


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedPass:
    """One pass of every piece."""

    kernels: Kernels
    """How the linears of measured stages were computed."""
    costs: PassCosts
    stage: CostTerms
    recomputation: dict[RecomputeMode, CostTerms]
    """What a layer takes more under a way of recomputing."""
    embedding: CostTerms
    head: CostTerms
    first_saved_ms_per_token: float = 0.0
    """What the first stage takes less (`EndCosts`)."""
    close_ms: float = 0.0
    close_floor_ms: float = 0.0
    """What the end of an adapter's global batch adds (`LayerFit`)."""

    steady_factor: float | None = None
    """What its work takes longer outside of rounds (steady.py)."""

    def whole(self, recompute: str = "none") -> LayerFit:
        """Layers and stage as they run."""
        more = {str(mode): terms for mode, terms in self.recomputation.items()}.get(recompute, CostTerms())
        return LayerFit(
            layer=self.costs.layer(self.kernels) + more,
            stage=self.stage,
            close_ms=self.close_ms,
            close_floor_ms=self.close_floor_ms,
        )

    def ms(self, table: pd.DataFrame) -> Float:
        """What rows of whole stages (`stage`, `first`, `last`) take, by these costs."""
        points, layers = _points(table), _layers_of(table)
        saved = self.first_saved_ms_per_token * points.tokens * (table["piece"] == "first").to_numpy()
        found = np.zeros(len(table))
        for mode in table["recompute"].unique():
            own = (table["recompute"] == mode).to_numpy()
            found[own] = self.whole(mode).ms(points.chosen(own), layers=layers[own], saved_ms=saved[own])
        for piece, terms, column in (("first", self.embedding, "tokens"), ("last", self.head, "targets")):
            own = (table["piece"] == piece).to_numpy()
            found[own] += terms.ms(tokens=table[column].to_numpy()[own], adapters=0.0)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedProfile:
    """The costs in time, as in the rounds, and the relative errors of held-out stage passes."""

    forward: FittedPass
    backward: FittedPass
    step_fixed_ms: float
    step_ms_per_layer: float
    errors: pd.Series
    """One a row of a whole stage: foretold over measured, minus 1, by a fit that had not seen its microbatch."""
    by_size: dict[str, FitError]
    """The same in sum, by size of the microbatch."""

    def onto(self, profile: CostProfile) -> CostProfile:
        """The profile with the costs of a GPU at work for seconds, and the errors of the rounds, in it."""
        sizes = self.errors.abs()
        forward, backward = self.forward, self.backward
        rested = replace(
            profile,
            forward=forward.costs,
            backward=backward.costs,
            stage_forward=forward.stage,
            stage_backward=backward.stage,
            recomputation=backward.recomputation,
            checkpointing=forward.recomputation,
            ends=EndCosts(
                embedding_forward=forward.embedding,
                embedding_backward=backward.embedding,
                head_forward=forward.head,
                head_backward=backward.head,
                first_layer_saved_ms_per_token=backward.first_saved_ms_per_token,
            ),
            step_fixed_ms=self.step_fixed_ms,
            step_ms_per_layer=self.step_ms_per_layer,
            fit_error_median=float(sizes.median()),
            fit_error_worst=float(sizes.max()),
            fit_errors=self.by_size,
            steady_forward_factor=forward.steady_factor,
            steady_backward_factor=backward.steady_factor,
        )
        return slowed(rested, forward=forward.steady_factor or 1.0, backward=backward.steady_factor or 1.0)


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
        fitted = _fit_passes(known, kernels)
        unseen = _led_up_to(table[whole & out], fitted["backward"])
        for which, costs in fitted.items():
            rows = unseen[unseen["pass"] == which]
            errors[rows.index] = costs.ms(rows) / rows["ms"].to_numpy() - 1.0
    steps = table[table["piece"] == "step"]
    step_fixed_ms, step_ms_per_layer = _line(_layers_of(steps), steps["ms"].to_numpy())
    forward, backward = (_steady_pass(table, costs, which) for which, costs in _fit_passes(table, kernels).items())
    return FittedProfile(
        forward=forward,
        backward=backward,
        # Every step follows the end of its batch, whatever backward that is part of.
        step_fixed_ms=step_fixed_ms + backward.close_ms,
        step_ms_per_layer=step_ms_per_layer,
        errors=errors,
        by_size=errors_by_size(table, errors),
    )


def _steady_pass(table: pd.DataFrame, fitted: FittedPass, which: Pass) -> FittedPass:
    return replace(fitted, steady_factor=steady_factor(table[table["pass"] == which], fitted.whole()))


def _fit_passes(table: pd.DataFrame, kernels: Kernels) -> dict[Pass, FittedPass]:
    backward = _fit_pass(table, "backward", kernels)
    return {"forward": _fit_pass(_led_up_to(table, backward), "forward", kernels), "backward": backward}


def _led_up_to(table: pd.DataFrame, backward: FittedPass) -> pd.DataFrame:
    # With the work that is left when a whole stage's forward begins: behind the backward of a microbatch of its size,
    # as neighbours in a round are.
    ahead_ms = np.full(len(table), np.inf)
    forward = (table["pass"] == "forward") & table["piece"].isin(WHOLE)
    for mode in table["recompute"].unique():
        own = (forward & (table["recompute"] == mode)).to_numpy()
        ahead_ms[own] = _ahead_ms(table[own], backward.whole(mode))
    return table.assign(ahead_ms=ahead_ms)


def _ahead_ms(rows: pd.DataFrame, backward: LayerFit) -> Float:
    return backward.ahead_ms(_points(rows), layers=_layers_of(rows))


def _fit_pass(table: pd.DataFrame, which: Pass, kernels: Kernels) -> FittedPass:
    own = table[table["pass"] == which]
    stages = own[own["piece"] == "stage"]
    plain = stages[stages["recompute"] == "none"]
    layer = _fit(plain, by_adapters=kernels == "eager")
    attention = _attention(own, layer.layer)
    return FittedPass(
        kernels=kernels,
        costs=_parts(own, layer.layer, attention, kernels=kernels),
        stage=layer.stage,
        recomputation=_recomputation(table, which, layer, kernels=kernels),
        # The embedding is frozen, and nothing runs backward behind the first layer.
        embedding=_end(own, "first", layer, by="tokens") if which == "forward" else CostTerms(),
        head=_end(own, "last", layer, by="targets"),
        first_saved_ms_per_token=_saved(own, layer) if which == "backward" else 0.0,
        close_ms=layer.close_ms,
        close_floor_ms=layer.close_floor_ms,
    )


def _attention(own: pd.DataFrame, layer: CostTerms) -> CostTerms:
    # All that grows with the squares, as it does in a whole layer; the rest as alone, but no more than the layer has.
    alone = _without_floor(_alone(own, "attention", terms=_BY_LENGTH))
    return replace(_each(np.minimum, alone, layer), per_square_ms=layer.per_square_ms)


def _parts(own: pd.DataFrame, layer: CostTerms, attention: CostTerms, *, kernels: Kernels) -> PassCosts:
    frozen_rows = own[own["piece"] == "frozen"]
    beside = _each(np.subtract, layer, attention)
    if not len(frozen_rows):
        return PassCosts(linears={kernels: beside}, attention=attention)
    frozen = _fit(frozen_rows, terms=_BY_TOKEN, known=LayerFit(layer=attention), by_adapters=False).layer
    alone = _alone(own, "linears-frozen", terms=_BY_TOKEN)
    # Never more than either layer has beside attention, so that every layer still adds up.
    elementwise = _without_floor(
        _each(np.minimum, _each(np.subtract, frozen, alone), _each(np.minimum, beside, frozen))
    )
    linears: dict[Kernels, CostTerms] = {
        "frozen": _each(np.subtract, frozen, elementwise),
        kernels: _each(np.subtract, beside, elementwise),
    }
    if kernels != "eager" and (own["piece"] == "linears-eager").any():
        # What stands around eager linears is launched in the time that it takes around frozen ones.
        around = max(0.0, frozen.floor_ms - alone.floor_ms)
        linears["eager"] = _alone(own, "linears-eager", terms=TERMS) + CostTerms(floor_ms=around)
    return PassCosts(linears=linears, attention=attention, elementwise=elementwise)


def _recomputation(
    table: pd.DataFrame, which: Pass, plain: LayerFit, *, kernels: Kernels
) -> dict[RecomputeMode, CostTerms]:
    stages, by_adapters = table[table["piece"] == "stage"], kernels == "eager"
    own, forward = (stages[stages["pass"] == name] for name in (which, "forward"))
    found = {}
    for mode in _AGAIN:
        rows = own[own["recompute"] == mode]
        if not len(rows):
            continue
        terms: Sequence[str] = _BY_TOKEN
        like = None
        if which == "forward":
            # The GPU does nothing more, the host does: it notes how to come back.
            terms = ()
        elif mode == "full":
            # The forward over again, with more or less around it; norms and a product know tokens only.
            plain_rows = forward[forward["recompute"] == "none"]
            like = _fit(plain_rows.assign(ahead_ms=_ahead_ms(plain_rows, plain)), by_adapters=by_adapters).layer
        found[mode] = _fit(rows, terms=terms, like=like, known=plain, beside=False, by_adapters=by_adapters).layer
    return found


def _saved(own: pd.DataFrame, plain: LayerFit) -> float:
    # By those first stages that wait for work, since nothing is launched the sooner.
    rows = own[own["piece"] == "first"]
    points, layers = _points(rows), _layers_of(rows)
    worked = plain.work_ms(points, layers=layers) > plain.floor_ms(points, layers=layers)
    less = plain.ms(points, layers=layers) - points.ms
    column = (points.tokens * worked)[:, None]
    return float(steady_relative(column, points.ms, known_ms=points.ms - less)[0])


def _end(own: pd.DataFrame, piece: str, plain: LayerFit, *, by: str) -> CostTerms:
    # What it takes more than its layers would; errors count in ms. A small microbatch waits for its launches, and runs
    # its head at the clock of a GPU that rests: 2.4 us a target on an H100 where a large one takes 3.2.
    rows = own[own["piece"] == piece]
    whole, layers = rows["ms"].to_numpy(), plain.ms(_points(rows), layers=_layers_of(rows))
    columns = np.stack([np.ones(len(rows)), rows[by].to_numpy()], axis=1)
    fixed, token = nonnegative(columns, whole - layers).tolist()
    return CostTerms(fixed_ms=fixed, per_token_ms=token)


def _alone(own: pd.DataFrame, piece: str, *, terms: Sequence[str]) -> CostTerms:
    rows = own[own["piece"] == piece]
    if not len(rows):
        return CostTerms()
    return _fit(rows, terms=terms, beside=False, by_adapters=piece == "linears-eager").layer


def _fit(
    rows: pd.DataFrame,
    *,
    terms: Sequence[str] = TERMS,
    like: CostTerms | None = None,
    known: LayerFit | None = None,
    beside: bool = True,
    by_adapters: bool,
) -> LayerFit:
    # Only plain PyTorch launches anew for every adapter.
    return fit_layers(
        _points(rows),
        layers=_layers_of(rows),
        known=known,
        terms=terms,
        like=like,
        beside=beside,
        by_adapters=by_adapters,
    )


def _points(rows: pd.DataFrame) -> CostPoints:
    names = ("tokens", "squares", "adapters", "dropped", "closes", "ms", "ahead_ms")
    return CostPoints.of(**{name: rows[name].to_numpy() for name in names if name in rows})


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
