"""Random tokens for runs whose texts do not matter."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..planner.jobs import Sample
from .batch import IGNORED, Encoded


@dataclass(frozen=True, slots=True)
class PoolTokens:
    """Random tokens cut from one pool: as cheap to get as those of a training run, whose texts are tokens already."""

    vocabulary: int
    pool: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        drawn = np.random.default_rng(0).integers(0, self.vocabulary, 2**17)
        object.__setattr__(self, "pool", drawn)

    def tokens(self, sample: Sample) -> Encoded:
        """The last `num_target_tokens` of each sample are learned."""
        first = (sample.index * 977 + sample.adapter * 131) % (len(self.pool) // 2)
        ids = self.pool[first : first + sample.num_tokens]
        if len(ids) < sample.num_tokens:
            # Not for the others: it copies all there is of the pool.
            ids = np.resize(ids, sample.num_tokens)
        labels = ids.copy()
        labels[: sample.num_tokens - sample.num_target_tokens] = IGNORED
        return ids, labels
