"""What costs depend on, per microbatch, in columns: the bridge from a Plan to a CostProfile."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..traces.costs import Float, StageCost
from .jobs import Job
from .plan import Microbatch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loads:
    """Arrays with one entry per microbatch."""

    tokens: NDArray[np.int64]
    squares: NDArray[np.int64]
    targets: NDArray[np.int64]
    adapters: NDArray[np.int64]
    dropped: NDArray[np.int64]
    """Tokens of adapters that train with dropout."""

    @classmethod
    def of(cls, microbatches: Sequence[Microbatch], *, jobs: Sequence[Job], pad_multiple: int = 1) -> "Loads":
        """Loads of these microbatches of `jobs`, padding included."""
        drops = [job.lora.lora_dropout > 0 for job in jobs]
        return cls(
            tokens=np.array([batch.padded_tokens(pad_multiple) for batch in microbatches], dtype=np.int64),
            squares=np.array([batch.sum_of_squares() for batch in microbatches], dtype=np.int64),
            targets=np.array([batch.num_target_tokens() for batch in microbatches], dtype=np.int64),
            adapters=np.array([len(batch.adapter_tokens()) for batch in microbatches], dtype=np.int64),
            dropped=np.array(
                [sum(tokens for adapter, tokens in batch.adapter_tokens() if drops[adapter]) for batch in microbatches],
                dtype=np.int64,
            ),
        )

    def forward_ms(self, stage: StageCost) -> Float:
        """Forward of each microbatch on this stage."""
        return stage.forward_ms(
            tokens=self.tokens,
            squares=self.squares,
            targets=self.targets,
            adapters=self.adapters,
            dropped=self.dropped,
        )

    def backward_ms(self, stage: StageCost) -> Float:
        """Whole backward of each microbatch on this stage."""
        return stage.backward_ms(
            tokens=self.tokens,
            squares=self.squares,
            targets=self.targets,
            adapters=self.adapters,
            dropped=self.dropped,
        )
