"""What one worker owns: its part of the model with every adapter's share in it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..planner.jobs import Job
from ..traces.costs import RecomputeMode
from ..traces.graph_tokens import GRAPH_TOKENS
from .adapters import StageAdapter
from .buckets import GraphBuckets
from .graphs import LayerGraphs, layer_graphs
from .insert_adapters import insert_adapters
from .model import Layout, StageModel, build_stage, read_config, whole_linears
from .targets import check_targets
from .weight_source import FROM_FOLDER, WeightSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage of the model, frozen, and the adapters that train in it."""

    model: StageModel
    adapters: tuple[StageAdapter, ...]
    replica: int = 0
    recompute: RecomputeMode = "none"
    """What its layers make again in the backward instead of keeping it."""
    graphs: LayerGraphs | None = None
    """Of its layers, for small microbatches; None: every kernel is launched by itself."""

    @property
    def layout(self) -> Layout:
        return self.model.layout

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def buckets(self) -> GraphBuckets | None:
        """What its microbatches are to be filled up to, where they are replayed as graphs."""
        return None if self.graphs is None else self.graphs.buckets

    def replays(self, num_tokens: int) -> bool:
        """Whether microbatches of so many tokens are replayed as graphs, all but the first of a kind."""
        return self.graphs is not None and self.graphs.capture and num_tokens <= GRAPH_TOKENS

    def rewind(self) -> None:
        """Let the same steps be taken once more, for measuring; weights and moments simply go on."""
        for adapter in self.adapters:
            adapter.version = 0

    def name(self, num_replicas: int = 1) -> str:
        """For messages to people."""
        return f"pp_rank {self.layout.stage}" + (f" of replica {self.replica}" if num_replicas > 1 else "")


def make_stage(
    folder: str | os.PathLike[str],
    jobs: Sequence[Job],
    *,
    stage: int,
    num_stages: int,
    replica: int = 0,
    weights: WeightSource = FROM_FOLDER,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    recompute: RecomputeMode = "none",
) -> Stage:
    """Load a stage of the model in `folder` and put fresh adapters into it, each drawn from its own seed.

    Adapters are float32, float64 where the model is. Raises JobError for a model or targets that do not fit.
    """
    layout = Layout.of(num_layers=read_config(folder).num_hidden_layers, stage=stage, num_stages=num_stages)
    return make_stage_of(
        folder, jobs, layout, replica=replica, weights=weights, dtype=dtype, device=device, recompute=recompute
    )


def make_stage_of(
    folder: str | os.PathLike[str],
    jobs: Sequence[Job],
    layout: Layout,
    *,
    replica: int = 0,
    weights: WeightSource = FROM_FOLDER,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    recompute: RecomputeMode = "none",
) -> Stage:
    """As `make_stage`, for any run of layers."""
    linears = whole_linears(folder)
    check_targets(jobs, linears)
    model = build_stage(folder, layout, weights=weights, dtype=dtype, device=device)
    for group in model.groups():
        group.mask_id = linears.index(group.names[0])
    wide = torch.float64 if next(model.parameters()).dtype is torch.float64 else torch.float32
    adapters = insert_adapters(jobs, tuple(model.groups()), dtype=wide)
    return Stage(
        model=model,
        adapters=adapters,
        replica=replica,
        recompute=recompute,
        graphs=layer_graphs(model, recompute=recompute),
    )
