"""CostProfile: what work costs on one kind of device, composed into the cost of a pipeline stage.

A profile holds the kernels of one decoder layer (linears, attention, elementwise), the two ends of the model, the
optimizer step, one link between neighbouring stages, and memory. `stages()` composes them for a number of stages.
Everything is a plain sum of terms, so that another GPU's numbers or another kernel can be swapped in by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from .cost_terms import CostTerms as CostTerms
from .cost_terms import Float as Float
from .errors import TraceError
from .fit_error import FitError as FitError
from .memory_costs import MemoryCosts as MemoryCosts
from .memory_costs import RecomputeMode as RecomputeMode
from .stage_cost import GraphCosts as GraphCosts
from .stage_cost import StageCost as StageCost

Origin = Literal["measured", "published", "textbook"]
Kernels = Literal["fused", "eager", "frozen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassCosts:
    """One pass (forward or backward) through one decoder layer, by kernel."""

    linears: Mapping[Kernels, CostTerms]
    """All target linears of the layer, base and LoRA, by how they are computed."""
    attention: CostTerms = field(default_factory=CostTerms)
    elementwise: CostTerms = field(default_factory=CostTerms)

    def slowed(self, factor: float) -> "PassCosts":
        """The pass of work that takes `factor` times as long, and as long to launch."""
        return PassCosts(
            linears={kernels: terms.slowed(factor) for kernels, terms in self.linears.items()},
            attention=self.attention.slowed(factor),
            elementwise=self.elementwise.slowed(factor),
        )

    def layer(self, kernels: Kernels) -> CostTerms:
        """The whole layer with these linears."""
        if kernels not in self.linears:
            raise TraceError(
                f"kernels={kernels!r} is not in this profile, which has {sorted(self.linears)}; choose one of them"
            )
        return self.linears[kernels] + self.attention + self.elementwise


@dataclass(frozen=True, slots=True, kw_only=True)
class EndCosts:
    """The embedding (first stage; by tokens) and the head with the loss (last stage; by target tokens)."""

    embedding_forward: CostTerms = field(default_factory=CostTerms)
    embedding_backward: CostTerms = field(default_factory=CostTerms)
    head_forward: CostTerms = field(default_factory=CostTerms)
    head_backward: CostTerms = field(default_factory=CostTerms)
    first_layer_saved_ms_per_token: float = 0.0
    """What the first stage's backward takes less: nobody asks for the gradient of a frozen embedding, and so the first
    layer makes none for its input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkCosts:
    """One transfer between neighbouring stages."""

    latency_ms: float = 0.0
    bytes_per_ms: float = float("inf")
    bytes_per_token: float = 0.0
    """Hidden size times bytes of the activations' type."""
    overlapped: bool = True
    """Whether a stage may compute while its transfers are under way."""

    def ms(self, tokens: ArrayLike) -> Float:
        """Time from the end of the sender's action until the receiver may start."""
        return self.latency_ms + np.asarray(tokens, dtype=np.float64) * self.bytes_per_token / self.bytes_per_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class CostProfile:
    """Costs of one model on one kind of device. `origin` says where the numbers come from; reports print it."""

    name: str
    origin: Origin
    source: str
    """For measured: device, versions, date, command. For published: the publication. For textbook: what was assumed."""
    num_layers: int
    forward: PassCosts
    backward: PassCosts
    weight_share: float = 0.0
    stage_forward: CostTerms = field(default_factory=CostTerms)
    """What a stage's forward takes beside its layers, however many: packing, bookkeeping. Its floor is the host's time
    until the first layer is launched."""
    stage_backward: CostTerms = field(default_factory=CostTerms)
    graphs: GraphCosts = field(default_factory=GraphCosts)
    """Of small microbatches of fused linears, as the engine runs them; others are launched kernel by kernel."""
    recomputation: Mapping[RecomputeMode, CostTerms] = field(default_factory=dict)
    """What one layer's backward takes more under a way of recomputing. A way that is not here costs, if full, one more
    forward of the layer, and if selective, one more forward of its elementwise kernels."""
    checkpointing: Mapping[RecomputeMode, CostTerms] = field(default_factory=dict)
    """What one layer's forward takes longer to launch under a way of recomputing, which the host prepares."""
    ends: EndCosts = field(default_factory=EndCosts)
    step_ms_per_layer: float = 0.0
    """One adapter's optimizer step over one layer."""
    step_fixed_ms: float = 0.0
    link: LinkCosts = field(default_factory=LinkCosts)
    memory: MemoryCosts = field(default_factory=MemoryCosts)
    fit_error_median: float | None = None
    """Median relative error of the fit on held-out points; None where nothing was fitted."""
    fit_error_worst: float | None = None
    fit_errors: Mapping[str, FitError] = field(default_factory=dict)
    """The same by size of the microbatch."""
    steady_forward_factor: float | None = None
    """How much longer a forward's work takes on a device that has been at it for seconds than in the rounds that errors
    are of. The costs are those of such a device; None where nobody measured it, and they are the rounds'."""
    steady_backward_factor: float | None = None

    def save(self, path: Path | str) -> None:
        """Write it as JSON, atomically. Raises TraceError at a value that breaks a rule."""
        from .profile_file import save_profile

        save_profile(self, path)

    @classmethod
    def load(cls, name_or_path: Path | str) -> "CostProfile":
        """A profile from the box by its name, or what `save` wrote. Raises TraceError naming file, field and value."""
        from .profiles import load_profile

        return load_profile(name_or_path)

    def fastest_kernels(self) -> Kernels:
        """The fastest linears this profile has: fused, else eager, else frozen."""
        order: tuple[Kernels, ...] = ("fused", "eager", "frozen")
        return next(kind for kind in order if kind in self.forward.linears)

    def stages(
        self,
        *,
        num_stages: int,
        kernels: Kernels | None = None,
        layers_per_stage: Sequence[int] | None = None,
        recompute: RecomputeMode = "none",
    ) -> tuple[StageCost, ...]:
        """Cost of each of `num_stages` stages.

        `kernels` defaults to `fastest_kernels`, `layers_per_stage` to `split_layers`.
        With `recompute` a backward pays for what it computes again.
        Raises TraceError when the layers do not add up.
        """
        layers = tuple(layers_per_stage) if layers_per_stage else split_layers(self.num_layers, num_stages)
        if len(layers) != num_stages or sum(layers) != self.num_layers or min(layers) < 1:
            raise TraceError(
                f"layers_per_stage={layers} must be {num_stages} positive numbers that add up to the profile's "
                f"{self.num_layers} layers"
            )
        chosen = kernels or self.fastest_kernels()
        forward = self.forward.layer(chosen) + self.checkpointing.get(recompute, CostTerms())
        backward = self.backward.layer(chosen) + self._recomputed(recompute, chosen)
        graphs = self.graphs if chosen == "fused" else GraphCosts()
        return tuple(
            StageCost(
                forward_terms=forward.scaled(count) + self.stage_forward,
                backward_terms=(backward.scaled(count) + self.stage_backward).less_per_token(
                    self.ends.first_layer_saved_ms_per_token if stage == 0 else 0.0
                ),
                weight_share=self.weight_share,
                lead_in_ms=self.stage_forward.floor_ms,
                graphs=graphs.of_layers(count),
                end_forward=_ends_of(stage, num_stages, self.ends.embedding_forward, self.ends.head_forward),
                end_backward=_ends_of(stage, num_stages, self.ends.embedding_backward, self.ends.head_backward),
                end_by_targets=stage == num_stages - 1,
                step_ms=self.step_fixed_ms + self.step_ms_per_layer * count,
                num_layers=count,
            )
            for stage, count in enumerate(layers)
        )

    def _recomputed(self, recompute: RecomputeMode, kernels: Kernels) -> CostTerms:
        if recompute in self.recomputation:
            return self.recomputation[recompute]
        if recompute == "full":
            return self.forward.layer(kernels)
        return self.forward.elementwise if recompute == "selective" else CostTerms()


def _ends_of(stage: int, num_stages: int, embedding: CostTerms, head: CostTerms) -> CostTerms:
    # A single stage carries both ends; the embedding, a lookup, is then counted by target tokens like the head.
    terms = CostTerms()
    if stage == 0:
        terms = terms + embedding
    if stage == num_stages - 1:
        terms = terms + head
    return terms


def split_layers(num_layers: int, num_stages: int) -> tuple[int, ...]:
    """Layers of each stage, as even as possible; longer shares first, since the last stage also carries the head."""
    if not 1 <= num_stages <= num_layers:
        raise TraceError(f"num_stages={num_stages} must lie between 1 and the model's {num_layers} layers")
    share, rest = divmod(num_layers, num_stages)
    return tuple(share + (stage < rest) for stage in range(num_stages))


def uniform_profile(
    *,
    forward_ms: float,
    backward_ms: float,
    weight_ms: float = 0.0,
    num_stages: int,
    num_chunks: int = 1,
    latency_ms: float = 0.0,
) -> CostProfile:
    """A textbook profile: every microbatch costs the same on every stage, and each of its chunks an equal part of it.

    `backward_ms` is the whole backward, `weight_ms` the part of it that makes weight gradients.
    """
    if min(forward_ms, backward_ms, weight_ms, latency_ms) < 0 or weight_ms > backward_ms:
        raise TraceError(
            f"forward_ms={forward_ms}, backward_ms={backward_ms}, weight_ms={weight_ms}, latency_ms={latency_ms}: "
            "none may be negative and weight_ms is a part of backward_ms"
        )
    return CostProfile(
        name="uniform",
        origin="textbook",
        source="the same cost for every microbatch on every stage",
        num_layers=num_stages * num_chunks,
        forward=PassCosts(linears={"fused": CostTerms(fixed_ms=forward_ms / num_chunks)}),
        backward=PassCosts(linears={"fused": CostTerms(fixed_ms=backward_ms / num_chunks)}),
        weight_share=weight_ms / backward_ms if backward_ms else 0.0,
        link=LinkCosts(latency_ms=latency_ms),
    )
