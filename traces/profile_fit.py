"""From raw points (profile_points.py) to the costs of a profile, and how well those foretell points not fitted to.

Each pass is fitted by itself (fit_pass.py). A forward waits for its first launch where the backward before it leaves
the GPU no work. All of that is fitted to rounds; work, and not launching, is then slowed to what it takes on a GPU that
has been at it for seconds (steady.py).
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from .costs import CostProfile, EndCosts, Float, Kernels
from .fit import folds, least_relative
from .fit_error import FitError, errors_by_size
from .fit_pass import FittedPass, Pass, fit_pass
from .profile_points import WHOLE, layers_of
from .steady import slowed, steady_factor

_HELD_OUT_FOLDS = 3
"""A random third of the microbatches is kept out of a fit, each in turn."""


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
            graphs=replace(
                profile.graphs,
                forward_floor_ms=forward.replay_floor_ms,
                forward_floor_per_layer_ms=forward.replay_floor_per_layer_ms,
                backward_floor_ms=backward.replay_floor_ms,
                backward_floor_per_layer_ms=backward.replay_floor_per_layer_ms,
            ),
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
    step_fixed_ms, step_ms_per_layer = _line(layers_of(steps), steps["ms"].to_numpy())
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
    backward = fit_pass(table, "backward", kernels)
    return {"forward": fit_pass(_led_up_to(table, backward), "forward", kernels), "backward": backward}


def _led_up_to(table: pd.DataFrame, backward: FittedPass) -> pd.DataFrame:
    # With the work that is left when a whole stage's forward begins: behind the backward of a microbatch of its size,
    # as neighbours in a round are.
    ahead_ms = np.full(len(table), np.inf)
    forward = (table["pass"] == "forward") & table["piece"].isin(WHOLE)
    for mode in table["recompute"].unique():
        own = (forward & (table["recompute"] == mode)).to_numpy()
        ahead_ms[own] = backward.ahead_ms(table[own], mode)
    return table.assign(ahead_ms=ahead_ms)


def _line(layers: Float, ms: Float) -> tuple[float, float]:
    # A fixed part and one by layers, neither negative.
    if not len(ms):
        return 0.0, 0.0
    fixed, each = least_relative(np.stack([np.ones(len(ms)), layers], axis=1), ms).tolist()
    return fixed, each
