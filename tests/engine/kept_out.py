"""Validation samples for the engine's tests."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loraplex.engine.batch import IGNORED, Encoded


@dataclass(frozen=True, slots=True)
class KeptOut:
    """Adapter 0 kept 7 samples out, adapter 2 kept 2, the others none."""

    def validation(self, adapter: int) -> Sequence[Encoded]:
        generator = np.random.default_rng(adapter)
        found = []
        for length in {0: [5, 9, 20, 7, 11, 30, 4], 2: [13, 16]}.get(adapter, []):
            ids = generator.integers(3, 64, length)
            labels = np.where(np.arange(length) < length // 2, IGNORED, ids)
            found.append((ids, labels))
        return found
