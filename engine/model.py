"""One pipeline stage of a Hugging Face causal language model: built without weights, then loaded with its own only."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from ..kernels.rms_norm import rms_norm
from ..kernels.routing import Routing
from ..planner.errors import JobError
from ..traces.costs import RecomputeMode, split_layers
from ..traces.counted import counted
from .batch import PackedRows
from .decoder import DecoderBlock, LayerContext
from .linear_group import LinearGroup
from .random_weights import DEFAULT_STD, random_weights
from .weight_source import FROM_FOLDER, WeightSource
from .weights import check_quantization, load_weights

FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
"""Model types whose decoder layers, rotary embedding, norm and head are put together as StageModel does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which part of the model a stage holds."""

    stage: int
    num_stages: int
    first_layer: int
    end_layer: int

    @classmethod
    def of(cls, *, num_layers: int, stage: int, num_stages: int) -> "Layout":
        """The share of a stage when layers are split as the cost profiles split them."""
        if num_stages > num_layers:
            raise JobError(
                f"pipeline.stages={num_stages} exceeds the base model's {counted(num_layers, 'layer')}; every "
                "stage needs one"
            )
        counts = split_layers(num_layers, num_stages)
        first = sum(counts[:stage])
        return cls(stage=stage, num_stages=num_stages, first_layer=first, end_layer=first + counts[stage])

    @property
    def is_first(self) -> bool:
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        return self.stage == self.num_stages - 1


class StageModel(nn.Module):
    """Embedding (first stage), decoder layers, norm and head (last stage), with rotary embeddings on every stage.

    Parameter names are those of the whole model, so that checkpoints and adapters know nothing of stages.
    """

    def __init__(self, whole: nn.Module, config: PretrainedConfig, layout: Layout) -> None:
        super().__init__()
        self.config = config
        self.layout = layout
        body: Any = whole.get_submodule("model")
        self.model = nn.Module()
        self.model.layers = nn.ModuleDict(
            {str(index): body.layers[index] for index in range(layout.first_layer, layout.end_layer)}
        )
        self.model.rotary_emb = body.rotary_emb
        if layout.is_first:
            self.model.embed_tokens = body.embed_tokens
        if layout.is_last:
            self.model.norm = body.norm
            self.lm_head: nn.Linear = whole.get_submodule("lm_head")  # type: ignore[assignment]
        self._blocks: tuple[DecoderBlock, ...] = ()

    def prepare(self) -> None:
        """Make the layers ready to run, once the weights are there; linears that share their input are joined."""
        body: Any = self.model
        self._blocks = tuple(
            DecoderBlock(layer, self.config, name=f"model.layers.{index}") for index, layer in body.layers.items()
        )

    def forward(
        self, inputs: Tensor, *, rows: PackedRows, routing: Routing | None = None, recompute: RecomputeMode = "none"
    ) -> Tensor:
        """Token ids `[1, T]` on the first stage, hidden states `[1, T, H]` on others -> hidden states `[1, T, H]`."""
        body: Any = self.model
        hidden = body.embed_tokens(inputs) if self.layout.is_first else inputs
        cos, sin = body.rotary_emb(hidden, rows.position_ids)
        context = LayerContext(rows=rows, routing=routing, cos=cos[0], sin=sin[0], recompute=recompute)
        residual, update = hidden[0], None
        for block in self._blocks:
            residual, update = block(residual, update, context)
        return (residual if update is None else residual + update)[None]

    def head_norm(self, hidden: Tensor) -> Tensor:
        """Hidden states `[rows, H]` of the last stage as the head takes them."""
        norm: Any = self.model.norm
        return rms_norm(hidden, norm.weight, eps=norm.variance_epsilon)

    def head_weight(self) -> Tensor:
        """`[V, H]`, on the last stage."""
        return self.lm_head.weight

    def blocks(self) -> tuple[DecoderBlock, ...]:
        """The forwards of this stage's layers, in order."""
        return self._blocks

    def groups(self) -> Iterator[LinearGroup]:
        """The linears of this stage's decoder layers, by the input they share, in model order."""
        for block in self._blocks:
            yield from block.groups()


def read_config(folder: str | os.PathLike[str]) -> PretrainedConfig:
    """config.json of a model folder. Raises JobError for a family or a quantization that we do not run."""
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise JobError(f"base_model '{path}' has no config.json; give the folder of a Hugging Face model")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path)
    except Exception as error:
        raise _refused(path, error) from None
    if config.model_type not in FAMILIES:
        raise JobError(f"base_model '{path}' is of type '{config.model_type}'; the engine runs {', '.join(FAMILIES)}")
    check_quantization(path, getattr(config, "quantization_config", None))
    _check_rope(path, config)
    return config


def whole_linears(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of all linears of the decoder layers of the model in `folder`, in model order; reads no weights."""
    whole = without_weights(read_config(folder), folder=folder)
    return tuple(name for name, module in whole.named_modules() if _is_target(name, module))


def build_stage(
    folder: str | os.PathLike[str],
    layout: Layout,
    *,
    weights: WeightSource = FROM_FOLDER,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> StageModel:
    """Build one stage of the model in `folder`; its frozen weights are read from the shards that hold them, or drawn.

    `dtype` defaults to the one in config.json, float32 where it names none.
    """
    config = read_config(folder)
    chosen = dtype or getattr(config, "dtype", None) or torch.float32
    module = StageModel(without_weights(config, folder=folder), config, layout)
    tied = bool(config.tie_word_embeddings)
    if weights.random_seed is None:
        load_weights(
            module, Path(folder), dtype=chosen, device=device, tied_head=tied, nf4=weights.nf4, report=weights.report
        )
    else:
        std = getattr(config, "initializer_range", None) or DEFAULT_STD
        random_weights(
            module,
            seed=weights.random_seed,
            dtype=chosen,
            device=device,
            std=std,
            tied_head=tied,
            nf4=weights.nf4,
        )
    _rebuild_rotary(module, config, device)
    left = [name for name, tensor in _tensors(module) if tensor.is_meta]
    if left:
        raise JobError(f"base_model '{folder}' lacks weights {left[:5]}; its safetensors files are incomplete")
    module.prepare()
    return module.eval()


def without_weights(config: PretrainedConfig, *, folder: str | os.PathLike[str]) -> nn.Module:
    """The whole model of `folder`'s config, on no device. Raises JobError where transformers cannot make it."""
    try:
        with torch.device("meta"):
            whole: nn.Module = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise _refused(folder, error) from None
    return whole


def _check_rope(path: Path, config: PretrainedConfig) -> None:
    # transformers takes these frequencies from the longest sample at hand, so that neighbours in a microbatch would
    # change each other's; asking the GPU for that length would also make the host wait for it.
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type"))
    if kind in ("dynamic", "longrope"):
        raise JobError(
            f"base_model '{path}' has rotary embeddings of type '{kind}', which depend on the longest sample of a "
            "microbatch; the engine runs those that do not (default, linear, llama3, yarn): set rope_scaling in "
            "config.json"
        )


def _refused(folder: str | os.PathLike[str], error: Exception) -> JobError:
    # Whatever its own checks raise, in one line.
    why = " ".join(f"{type(error).__name__}: {error}".split())
    return JobError(f"base_model '{folder}': transformers refuses its config.json ({why}); download the model anew")


def _is_target(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and name.startswith("model.layers.")


def _rebuild_rotary(module: StageModel, config: PretrainedConfig, device: torch.device | str) -> None:
    # inv_freq is in no checkpoint, and a meta build leaves it without values: make the module anew.
    body: Any = module.model
    body.rotary_emb = type(body.rotary_emb)(config=config).to(device)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
