"""How much longer work takes on a GPU that has been at it for seconds than in the rounds of a measurement.

In the rounds a GPU rests between the runs, at a power limit its clock is then higher, and a run that is foretold by
them is foretold too fast (docs/estimate.md). Each pass has a factor of its own: at every depth from 2 to 32 layers of
Llama-3.1-8B on an H100, forwards took 7 to 8 % longer than the rounds said and backwards 0 to 4 % (2026-11-26).
"""

import pandas as pd

from .fit import CostPoints, Float
from .fit_layers import LayerFit


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
    names = ("tokens", "squares", "adapters", "dropped", "closes", "ms")
    points = CostPoints.of(**{name: measured[name].to_numpy() for name in names})
    layers: Float = measured["layers"].to_numpy(dtype=float)
    work_ms = fitted.work_ms(points, layers=layers)
    works = work_ms > fitted.floor_ms(points, layers=layers)
    # In sum, so that long passes count more.
    return max(1.0, float(points.ms[works].sum() / work_ms[works].sum())) if works.any() else 1.0
