"""How far a profile's costs lie from measured passes that they had not been fitted to, in all and by size."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

LARGE_TOKENS = 4096
"""Plans hold microbatches of so many tokens or more; smaller ones wait for the host, which nobody foretells as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitError:
    """Sizes of the relative errors of held-out passes of one class."""

    passes: float
    """How many there are."""
    median: float
    worst: float
    spread: float | None = None
    """How far measuring alone scatters: the rounds' quartiles lie so far to either side, as a share, in the median
    pass. None where single rounds were not written down."""

    def told(self) -> str:
        """For people, in percent."""
        told = f"median {100 * self.median:.1f} %, worst {100 * self.worst:.1f} % of {self.passes:.0f} passes"
        return told if self.spread is None else f"{told}, whose rounds scatter by {100 * self.spread:.1f} %"


def errors_by_size(table: pd.DataFrame, errors: pd.Series) -> dict[str, FitError]:
    """The classes of `errors` (one for each of its rows of `table`) that are not empty."""
    rows, sizes = table.loc[errors.index], errors.abs()
    large = rows["tokens"] >= LARGE_TOKENS
    spread = (rows["high_ms"] - rows["low_ms"]) / 2 / rows["ms"]
    classes: Mapping[str, pd.Series] = {
        f"of {LARGE_TOKENS:,} tokens or more": large,
        f"below {LARGE_TOKENS:,} tokens": ~large,
    }
    return {
        name: FitError(
            passes=float(own.sum()),
            median=float(sizes[own].median()),
            worst=float(sizes[own].max()),
            spread=None if np.isnan(spread[own]).all() else float(spread[own].median()),
        )
        for name, own in classes.items()
        if own.any()
    }
