"""Costs to plan a pipeline by where nothing was measured."""

from typing import Final

from ..traces.costs import CostProfile, CostTerms, PassCosts
from .overhead import OVERHEAD_TOKENS

_TOKEN_MS: Final = 1e-3
"""Any: plans are only compared."""
_LAYERS: Final = 24
"""Of a worker's stage: any that its model parts, where a schedule has several, divide evenly."""


def assumed_costs(*, num_workers: int) -> CostProfile | None:
    """A token costs the same everywhere, its backward twice its forward, and each microbatch something beside.

    Good enough to choose how far microbatches are filled, and not for telling times. None for a lone worker, which has
    nobody to wait for: full microbatches are the best there.
    """
    if num_workers == 1:
        return None
    forward, backward = (
        CostTerms(per_token_ms=share * _TOKEN_MS, fixed_ms=share * OVERHEAD_TOKENS * _TOKEN_MS) for share in (1, 2)
    )
    return CostProfile(
        name="assumed",
        origin="textbook",
        source=f"a token costs the same everywhere, a microbatch {OVERHEAD_TOKENS} tokens beside",
        num_layers=_LAYERS * num_workers,
        forward=PassCosts(linears={"fused": forward}),
        backward=PassCosts(linears={"fused": backward}),
    )
