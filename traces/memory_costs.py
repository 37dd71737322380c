"""MemoryCosts: what a stage keeps in device memory, and what it keeps under each way of recomputing activations."""

from dataclasses import dataclass
from typing import Literal

from .errors import TraceError

RecomputeMode = Literal["none", "selective", "full"]
"""What a layer's backward computes again instead of having kept it.

none: nothing. selective: outputs of the norms and the product inside SwiGLU, a few cheap passes. full: the whole layer,
from its input.
"""
RecomputeChoice = Literal["none", "selective", "full", "auto"]
"""What a user asks for; auto: the fastest that fits into the device's memory."""
RECOMPUTE_MODES: tuple[RecomputeMode, ...] = ("none", "selective", "full")
"""From the fastest to the one that keeps least."""


def recompute_choice(text: str) -> RecomputeChoice:
    """What a user asks for. Raises TraceError for an unknown way."""
    choices: tuple[RecomputeChoice, ...] = (*RECOMPUTE_MODES, "auto")
    for choice in choices:
        if choice == text:
            return choice
    raise TraceError(f"recompute='{text}' is unknown; choose one of {', '.join(choices)}")


def asked_recompute(choice: RecomputeChoice) -> RecomputeMode | None:
    """The way that a choice names; None for auto, which leaves it to what fits."""
    return None if choice == "auto" else choice


def recompute_mode(text: str) -> RecomputeMode:
    """The way of recomputing that a user names. Raises TraceError for an unknown one."""
    for mode in RECOMPUTE_MODES:
        if mode == text:
            return mode
    raise TraceError(f"recompute='{text}' is unknown; choose one of {', '.join(RECOMPUTE_MODES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCosts:
    """What a stage keeps in device memory, in bytes."""

    layer_weight_bytes: float = 0.0
    embedding_weight_bytes: float = 0.0
    head_weight_bytes: float = 0.0
    adapter_bytes_per_layer: float = 0.0
    """Weights, gradients, optimizer state and packed copies of one adapter in one layer."""
    adapter_gradient_bytes_per_layer: float = 0.0
    """Of these, the gradients: what replicas reduce before a step."""
    adapter_parameters_per_layer: float = 0.0
    """Parameters of the adapter that these bytes are of, so that other adapters can be scaled from it; 0: not known."""
    activation_bytes_per_token_layer: float = 0.0
    """Kept from forward to backward when nothing is recomputed."""
    selective_bytes_per_token_layer: float = 0.0
    """Kept under selective recomputation; 0: not known, and then counted as when nothing is recomputed."""
    stage_bytes_per_token: float = 0.0
    """Kept from forward to backward beside the layers, once a stage: its output."""
    boundary_bytes_per_token: float = 0.0
    """A stage's input, kept of each layer under full recomputation, and in transfer."""
    workspace_bytes_per_token: float = 0.0
    """What a pass needs in passing beyond what it keeps: the largest layer's, once a stage."""
    logit_bytes_per_target: float = 0.0
    """Peak of head and loss on the last stage, from the forward to the end of the backward."""
    head_workspace_bytes: float = 0.0
    """The part of that peak that does not grow with the targets: the chunk of logits at hand."""
    graph_tokens: int = 0
    """Microbatches of at most so many tokens are replayed as CUDA graphs, which keep memory of their own; 0: none."""
    overhead_bytes: float = 0.0
    """Context, workspaces, fragmentation."""
    capacity_bytes: float = float("inf")

    def knows_activations(self) -> bool:
        """Whether it says what passes keep, without which nothing can be told of peaks."""
        return self.activation_bytes_per_token_layer > 0

    def kept_bytes_per_token_layer(self, recompute: RecomputeMode) -> float:
        """What a layer keeps of each token from forward to backward."""
        if recompute == "full":
            return self.boundary_bytes_per_token
        if recompute == "selective" and self.selective_bytes_per_token_layer:
            return self.selective_bytes_per_token_layer
        return self.activation_bytes_per_token_layer

    def rebuilt_bytes_per_token(self, recompute: RecomputeMode) -> float:
        """What a backward has beside that while it computes a layer again: one layer at a time."""
        return max(0.0, self.activation_bytes_per_token_layer - self.kept_bytes_per_token_layer(recompute))
