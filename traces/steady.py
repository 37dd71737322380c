"""How much longer work takes on a GPU that has been at it for seconds than in the rounds of a measurement.

In the rounds a GPU rests between the runs, at a power limit its clock is then higher, and a run that is foretold by
them is foretold too fast (docs/estimate.md). Each pass has a factor of its own: at every depth from 2 to 32 layers of
Llama-3.1-8B on an H100, forwards took 7 to 8 % longer than the rounds said and backwards 0 to 4 % (2026-11-26).
"""

from dataclasses import replace

import pandas as pd

from .costs import CostProfile
from .fit_layers import LayerFit
from .profile_points import cost_points, layers_of

ROUNDS_BUSY = 0.5
"""A GPU that is busy for so much of the time, or less, has the clock of the rounds, in which it rests between runs and
waits for launches in every other microbatch. Four stages on four H100s with bubbles of 28 to 77 % (2026-11-26): plans
of large microbatches are foretold 6.2 to 9.1 % too slow at the clock of a GPU that never rests, 0.8 to 3.6 so."""


def slowed(profile: CostProfile, *, forward: float, backward: float) -> CostProfile:
    """The profile of a device on which work takes so many times as long; launches and steps stay as they are.

    Recomputation is a forward, whenever it runs.
    """
    ends = profile.ends
    return replace(
        profile,
        forward=profile.forward.slowed(forward),
        backward=profile.backward.slowed(backward),
        stage_forward=profile.stage_forward.slowed(forward),
        stage_backward=profile.stage_backward.slowed(backward),
        recomputation={mode: terms.slowed(forward) for mode, terms in profile.recomputation.items()},
        ends=replace(
            ends,
            embedding_forward=ends.embedding_forward.slowed(forward),
            embedding_backward=ends.embedding_backward.slowed(backward),
            head_forward=ends.head_forward.slowed(forward),
            head_backward=ends.head_backward.slowed(backward),
            first_layer_saved_ms_per_token=backward * ends.first_layer_saved_ms_per_token,
        ),
    )


def when_busy(profile: CostProfile, share: float) -> CostProfile:
    """The profile of a device that works for this part of the time and rests in between, as a pipeline's stages do.

    Its costs are those of one that never rests; from `ROUNDS_BUSY` down they are the rounds', linear between.
    """
    forward, backward = profile.steady_forward_factor or 1.0, profile.steady_backward_factor or 1.0
    if forward == backward == 1.0 or share >= 1.0:
        return profile
    weight = max(0.0, share - ROUNDS_BUSY) / (1.0 - ROUNDS_BUSY)
    return slowed(
        profile,
        forward=(1.0 + weight * (forward - 1.0)) / forward,
        backward=(1.0 + weight * (backward - 1.0)) / backward,
    )


def steady_factor(table: pd.DataFrame, fitted: LayerFit) -> float | None:
    """The time of the points `steady` over what the fit to the rounds says of them; None where nobody measured any.

    `table` holds one pass, which `fitted` is of. Not over the same microbatches in the rounds: each of those depends on
    the one before it (a forward behind much attention is faster, by up to 5 %), the fit on all of them. Where a pass
    waits for its launches it does not count: the host knows nothing of the GPU's clock. Nor does work get faster
    by resting less, so what lies below 1 is scatter, and is 1. Nothing bounds it above: a GPU that is throttled is
    throttled in training too.
    """
    measured = table[table["piece"] == "steady"]
    if measured.empty:
        return None
    points, layers = cost_points(measured), layers_of(measured)
    work_ms = fitted.work_ms(points, layers=layers)
    works = work_ms > fitted.floor_ms(points, layers=layers)
    # In sum, so that long passes count more.
    return max(1.0, float(points.ms[works].sum() / work_ms[works].sum())) if works.any() else 1.0
