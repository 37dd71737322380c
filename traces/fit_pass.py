"""One pass, forward or backward, from raw points to the costs of every piece of it.

The layer as it runs is what counts, so it is fitted whole, from stages of several depths. Its parts are then told
apart: what grows with the squares is attention, what else attention takes is what it took alone; without adapters the
linears alone were measured, and what remains beside them and attention is elementwise. A launch floor is the whole
layer's: it stands with its linears. A stage that is replayed as CUDA graphs has one for all its layers, and their work.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from .costs import CostTerms, Float, Kernels, PassCosts
from .fit import TERMS, nonnegative, steady_relative
from .fit_layers import LayerFit, fit_layers
from .memory_costs import RecomputeMode
from .profile_points import cost_points, layers_of

Pass = Literal["forward", "backward"]
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
    replay_floor_ms: float = 0.0
    replay_floor_per_layer_ms: float = 0.0
    """The time to launch a stage that is replayed as CUDA graphs, and what each layer takes then at least."""
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
            replay_floor_ms=self.replay_floor_ms,
            replay_floor_per_layer_ms=self.replay_floor_per_layer_ms,
        )

    def ms(self, table: pd.DataFrame) -> Float:
        """What rows of whole stages (`stage`, `first`, `last`) take, by these costs."""
        points, layers = cost_points(table), layers_of(table)
        saved = self.first_saved_ms_per_token * points.tokens * (table["piece"] == "first").to_numpy()
        found = np.zeros(len(table))
        for mode in table["recompute"].unique():
            own = (table["recompute"] == mode).to_numpy()
            found[own] = self.whole(mode).ms(points.chosen(own), layers=layers[own], saved_ms=saved[own])
        for piece, terms, column in (("first", self.embedding, "tokens"), ("last", self.head, "targets")):
            own = (table["piece"] == piece).to_numpy()
            found[own] += terms.ms(tokens=table[column].to_numpy()[own], adapters=0.0)
        return found

    def ahead_ms(self, table: pd.DataFrame, recompute: str) -> Float:
        """The work that is left to the GPU when stages under this way of recomputing have been launched."""
        return _ahead_ms(table, self.whole(recompute))


def fit_pass(table: pd.DataFrame, which: Pass, kernels: Kernels) -> FittedPass:
    """All pieces of a pass; `kernels` says how the linears of stages with adapters were computed.

    `table`: points of both passes, forwards with the work `ahead_ms` that the GPU had left (`FittedPass.ahead_ms`).
    """
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
        replay_floor_ms=layer.replay_floor_ms,
        replay_floor_per_layer_ms=layer.replay_floor_per_layer_ms,
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
    points, layers = cost_points(rows), layers_of(rows)
    worked = plain.work_ms(points, layers=layers) > plain.floor_ms(points, layers=layers)
    less = plain.ms(points, layers=layers) - points.ms
    column = (points.tokens * worked)[:, None]
    return float(steady_relative(column, points.ms, known_ms=points.ms - less)[0])


def _end(own: pd.DataFrame, piece: str, plain: LayerFit, *, by: str) -> CostTerms:
    # What it takes more than its layers would; errors count in ms. A small microbatch waits for its launches, and runs
    # its head at the clock of a GPU that rests: 2.4 us a target on an H100 where a large one takes 3.2.
    rows = own[own["piece"] == piece]
    whole, layers = rows["ms"].to_numpy(), plain.ms(cost_points(rows), layers=layers_of(rows))
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
        cost_points(rows),
        layers=layers_of(rows),
        known=known,
        terms=terms,
        like=like,
        beside=beside,
        by_adapters=by_adapters,
    )


def _ahead_ms(rows: pd.DataFrame, backward: LayerFit) -> Float:
    return backward.ahead_ms(cost_points(rows), layers=layers_of(rows))


def _each(operation: Callable[[float, float], float], left: CostTerms, right: CostTerms) -> CostTerms:
    # Term by term, nothing below zero.
    names = CostTerms.__dataclass_fields__
    return CostTerms(**{name: max(0.0, float(operation(getattr(left, name), getattr(right, name)))) for name in names})


def _without_floor(terms: CostTerms) -> CostTerms:
    return replace(terms, floor_ms=0.0, floor_per_adapter_ms=0.0)
