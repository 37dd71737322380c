"""CostTerms: what one piece of work on a microbatch takes, as a sum of terms over a floor."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTerms:
    """Milliseconds of one piece of work on a microbatch: a sum of terms, but never less than the floor.

    The floor is the time in which the host can launch the work, which a GPU waits for when a microbatch is small.
    Terms of pieces that run one after another add up, floors too: launches are one queue.
    """

    fixed_ms: float = 0.0
    per_token_ms: float = 0.0
    per_square_ms: float = 0.0
    """Per unit of the sum over samples of the squared length in tokens."""
    per_adapter_ms: float = 0.0
    per_dropped_ms: float = 0.0
    """Per token of an adapter that trains with dropout, beside `per_token_ms`."""
    floor_ms: float = 0.0
    floor_per_adapter_ms: float = 0.0

    def ms(
        self,
        *,
        tokens: ArrayLike,
        squares: ArrayLike = 0.0,
        adapters: ArrayLike = 1.0,
        dropped: ArrayLike = 0.0,
        waits_ms: ArrayLike = 0.0,
        floor_ms: ArrayLike | None = None,
    ) -> Float:
        """Cost of microbatches given by arrays of one shape, whose work begins `waits_ms` after them.

        0 where a microbatch has no tokens. `floor_ms`: what launching takes where it is not done kernel by kernel.
        """
        work = self.work_ms(tokens=tokens, squares=squares, adapters=adapters, dropped=dropped)
        floor = self.launched_ms(adapters) if floor_ms is None else floor_ms
        cost = np.maximum(work + np.asarray(waits_ms, dtype=np.float64), floor)
        return np.where(np.asarray(tokens) > 0, np.maximum(cost, 0.0), 0.0)

    def work_ms(
        self, *, tokens: ArrayLike, squares: ArrayLike = 0.0, adapters: ArrayLike = 1.0, dropped: ArrayLike = 0.0
    ) -> Float:
        """The work of it, however long it takes to launch."""
        work = (
            self.fixed_ms
            + self.per_token_ms * np.asarray(tokens, dtype=np.float64)
            + self.per_square_ms * np.asarray(squares, dtype=np.float64)
            + self.per_adapter_ms * np.asarray(adapters, dtype=np.float64)
            + self.per_dropped_ms * np.asarray(dropped, dtype=np.float64)
        )
        return np.asarray(work, dtype=np.float64)

    def ahead_ms(
        self, *, tokens: ArrayLike, squares: ArrayLike = 0.0, adapters: ArrayLike = 1.0, dropped: ArrayLike = 0.0
    ) -> Float:
        """How long the device still works at it when the host has launched it all."""
        work = self.work_ms(tokens=tokens, squares=squares, adapters=adapters, dropped=dropped)
        return np.maximum(0.0, work - self.launched_ms(adapters))

    def launched_ms(self, adapters: ArrayLike) -> Float:
        """How long the host takes to launch it, kernel by kernel."""
        each = self.floor_per_adapter_ms * np.asarray(adapters, dtype=np.float64)
        return np.asarray(self.floor_ms + each, dtype=np.float64)

    def __add__(self, other: "CostTerms") -> "CostTerms":
        return CostTerms(**{name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__})

    def less_per_token(self, ms: float) -> "CostTerms":
        """The cost of work that takes so much less for each token, and as long to launch."""
        return replace(self, per_token_ms=max(0.0, self.per_token_ms - ms))

    def slowed(self, factor: float) -> "CostTerms":
        """The cost of work that takes `factor` times as long, and as long to launch."""
        return replace(self.scaled(factor), floor_ms=self.floor_ms, floor_per_adapter_ms=self.floor_per_adapter_ms)

    def scaled(self, factor: float) -> "CostTerms":
        """The cost of `factor` times the work."""
        return CostTerms(**{name: getattr(self, name) * factor for name in self.__dataclass_fields__})
