"""StageCost: what forward and backward of one pipeline stage take, composed of what a profile measured."""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .cost_terms import CostTerms, Float
from .graph_tokens import filled_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphCosts:
    """Microbatches that are replayed as CUDA graphs: one launch a pass, in place of the floors of layers and stage.

    Their work is what it is kernel by kernel, padding included, and shows where that was hidden behind its launches.
    """

    max_tokens: int = 0
    """The largest that are replayed; 0: none is."""
    forward_floor_ms: float = 0.0
    """The time to launch a stage's forward, and what surrounds it."""
    forward_floor_per_layer_ms: float = 0.0
    """What each layer takes at least, however few its tokens: a GPU reads all weights for them."""
    backward_floor_ms: float = 0.0
    backward_floor_per_layer_ms: float = 0.0

    def of_layers(self, count: int) -> "GraphCosts":
        """Those of a stage of so many layers."""
        return GraphCosts(
            max_tokens=self.max_tokens,
            forward_floor_ms=self.forward_floor_ms + count * self.forward_floor_per_layer_ms,
            backward_floor_ms=self.backward_floor_ms + count * self.backward_floor_per_layer_ms,
        )

    def replays(self, tokens: ArrayLike) -> NDArray[np.bool_]:
        """Of microbatches of so many tokens, which ones are."""
        return np.asarray(np.asarray(tokens) <= self.max_tokens)

    def layers_ms(
        self,
        terms: CostTerms,
        *,
        replay_floor_ms: float,
        waits_ms: ArrayLike = 0.0,
        tokens: ArrayLike,
        squares: ArrayLike,
        adapters: ArrayLike,
        dropped: ArrayLike,
    ) -> Float:
        """One pass of a stage's layers; what is replayed pays for its padding and one launch, and waits for none."""
        replayed = self.replays(tokens)
        return terms.ms(
            tokens=filled_tokens(tokens, replayed=replayed),
            squares=squares,
            adapters=adapters,
            dropped=dropped,
            waits_ms=np.where(replayed, 0.0, waits_ms),
            floor_ms=np.where(replayed, replay_floor_ms, terms.launched_ms(adapters)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """Composed cost of one stage, in ms, for arrays of microbatches: what a profile foretells."""

    forward_terms: CostTerms
    backward_terms: CostTerms
    """Input gradients and weight gradients together."""
    weight_share: float = 0.0
    """Part of the backward pass that only makes weight gradients (small: the base is frozen)."""
    end_forward: CostTerms = field(default_factory=CostTerms)
    end_backward: CostTerms = field(default_factory=CostTerms)
    lead_in_ms: float = 0.0
    """Of a forward's floor, what passes before the device gets any of its work. It waits so long, unless the host is
    ahead, as it is behind a backward whose work takes longer than launching it: that of a microbatch like this one, as
    neighbours in a plan are alike."""
    graphs: GraphCosts = field(default_factory=GraphCosts)
    """With all its layers in the floors of the stage."""
    end_by_targets: bool = False
    """Whether the end's tokens are target tokens (head) or all tokens (embedding)."""
    step_ms: float = 0.0
    num_layers: int = 0

    def forward_ms(
        self,
        *,
        tokens: ArrayLike,
        squares: ArrayLike,
        targets: ArrayLike,
        adapters: ArrayLike,
        dropped: ArrayLike = 0.0,
    ) -> Float:
        """Forward of each microbatch."""
        end_tokens = targets if self.end_by_targets else tokens
        ahead_ms = self.backward_terms.ahead_ms(tokens=tokens, squares=squares, adapters=adapters, dropped=dropped)
        layers = self.graphs.layers_ms(
            self.forward_terms,
            replay_floor_ms=self.graphs.forward_floor_ms,
            waits_ms=np.maximum(0.0, self.lead_in_ms - ahead_ms),
            tokens=tokens,
            squares=squares,
            adapters=adapters,
            dropped=dropped,
        )
        return layers + self.end_forward.ms(tokens=end_tokens, adapters=0.0)

    def backward_ms(
        self,
        *,
        tokens: ArrayLike,
        squares: ArrayLike,
        targets: ArrayLike,
        adapters: ArrayLike,
        dropped: ArrayLike = 0.0,
    ) -> Float:
        """Whole backward of each microbatch."""
        end_tokens = targets if self.end_by_targets else tokens
        layers = self.graphs.layers_ms(
            self.backward_terms,
            replay_floor_ms=self.graphs.backward_floor_ms,
            tokens=tokens,
            squares=squares,
            adapters=adapters,
            dropped=dropped,
        )
        return layers + self.end_backward.ms(tokens=end_tokens, adapters=0.0)

    def kernel_by_kernel(self) -> "StageCost":
        """The stage without graphs, as it evaluates."""
        return replace(self, graphs=GraphCosts())
