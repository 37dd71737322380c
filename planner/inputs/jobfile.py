"""The schema of jobs.yaml: every field, its type, its rule and its default. docs/jobs.md is checked against it.

Names follow PEFT for what an adapter is and Axolotl for how it is trained.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ...traces.memory_costs import RecomputeChoice
from ..jobs import LoggerName, OnNonfinite, Scheduler
from .adapter_name import name_fault

TextFormat = Literal["auto", "prompt_completion", "messages", "alpaca", "text"]
DataFormat = Literal[TextFormat, "lengths"]
LongSamples = Literal["error", "truncate", "skip"]

MAX_LORA_RANK = 256
"""What the kernels hold."""


def _checked_name(name: str) -> str:
    fault = name_fault(name)
    if fault:
        raise ValueError(fault)
    return name


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Rank = Annotated[int, Field(ge=1, le=MAX_LORA_RANK)]
Alpha = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
BatchSize = Annotated[int, Field(ge=1)]
Epochs = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=1)]
LearningRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Norm = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, AfterValidator(_checked_name)]


class _Entry(BaseModel):
    # Strict: `r: true` and `r: "8"` are mistakes, not 1 and 8. Lists in YAML become tuples all the same.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DatasetEntry(_Entry):
    """One file of training texts."""

    path: str = Field(
        min_length=1,
        description="A .jsonl, .json, .csv or .parquet file, relative to the job file; `demo:NAME` is a built-in one.",
    )
    type: DataFormat = Field(default="auto", description="How its records look; `auto` decides by their field names.")


class Grid(_Entry):
    """Values to try: one adapter is trained for each combination."""

    r: tuple[Rank, ...] = Field(default=(), strict=False, description="As in the adapter.")
    lora_alpha: tuple[Alpha, ...] = Field(default=(), strict=False, description="As in the adapter.")
    lora_dropout: tuple[Dropout, ...] = Field(default=(), strict=False, description="As in the adapter.")
    use_rslora: tuple[bool, ...] = Field(default=(), strict=False, description="As in the adapter.")
    global_batch_size: tuple[BatchSize, ...] = Field(default=(), strict=False, description="As in the adapter.")
    num_epochs: tuple[Epochs, ...] = Field(default=(), strict=False, description="As in the adapter.")
    max_steps: tuple[Steps, ...] = Field(default=(), strict=False, description="As in the adapter.")
    learning_rate: tuple[LearningRate, ...] = Field(default=(), strict=False, description="As in the adapter.")
    lr_scheduler: tuple[Scheduler, ...] = Field(default=(), strict=False, description="As in the adapter.")
    warmup_ratio: tuple[Share, ...] = Field(default=(), strict=False, description="As in the adapter.")
    weight_decay: tuple[Decay, ...] = Field(default=(), strict=False, description="As in the adapter.")
    max_grad_norm: tuple[Norm | None, ...] = Field(default=(), strict=False, description="As in the adapter.")
    seed: tuple[Seed, ...] = Field(default=(), strict=False, description="As in the adapter.")

    @model_validator(mode="after")
    def _values_differ(self) -> "Grid":
        for name in self.model_fields_set:
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}: {list(values)} must hold at least one value, each once")
        return self


class AdapterEntry(_Entry):
    """One LoRA adapter (or, with `grid`, several): what it is and how it is trained."""

    name: Name = Field(description="Its name and the name of its output folder; unique, upper and lower case alike.")
    datasets: tuple[DatasetEntry, ...] = Field(
        strict=False, min_length=1, description="The files it learns from, one after another."
    )
    r: Rank = Field(default=16, description="LoRA rank.")
    lora_alpha: Alpha = Field(default=32.0, description="The LoRA branch is multiplied by lora_alpha / r.")
    lora_dropout: Dropout = Field(default=0.0, description="Share of the LoRA branch's inputs that is dropped.")
    target_modules: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = Field(
        default=("all-linear",),
        strict=False,
        min_length=1,
        description="`all-linear`, or names of linears such as [q_proj, v_proj].",
    )
    use_rslora: bool = Field(default=False, description="Multiply by lora_alpha / sqrt(r) instead.")
    init_adapter: str | None = Field(
        default=None, min_length=1, description="Folder of a PEFT adapter to go on from, relative to the job file."
    )
    global_batch_size: BatchSize = Field(default=8, description="Samples per optimizer step.")
    num_epochs: Epochs | None = Field(default=None, description="Passes over the data; 1 without max_steps.")
    max_steps: Steps | None = Field(default=None, description="Optimizer steps, instead of num_epochs.")
    learning_rate: LearningRate = Field(default=2e-4, description="Peak learning rate of AdamW.")
    lr_scheduler: Scheduler = Field(default="linear", description="How the rate falls after warmup.")
    warmup_ratio: Share = Field(default=0.0, description="Share of the steps in which the rate rises from 0.")
    weight_decay: Decay = Field(default=0.0, description="AdamW's decoupled weight decay.")
    max_grad_norm: Norm | None = Field(
        default=1.0, description="Clip the norm of all its gradients together; null: do not."
    )
    adam_beta1: Share = Field(default=0.9, description="AdamW's first moment decay.")
    adam_beta2: Share = Field(default=0.999, description="AdamW's second moment decay.")
    adam_epsilon: Norm = Field(default=1e-8, description="AdamW's epsilon.")
    seed: Seed | None = Field(
        default=None, description="For its initial weights, dropout and data order; the file's seed when absent."
    )
    val_split: Share = Field(default=0.0, description="Share of the samples kept out of training, to measure on.")
    eval_steps: Steps | None = Field(
        default=None, description="Optimizer steps from one look at the validation loss to the next."
    )
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Looks in a row without a lower loss after which it takes no more steps."
    )
    load_best_model_at_end: bool = Field(
        default=False, description="Export the weights with the lowest validation loss instead of the last."
    )
    weight: Norm = Field(default=1.0, description="Importance when the planner is asked to be fair.")
    deadline_ms: Norm | None = Field(
        default=None, description="Wished completion when the planner is asked to be fair."
    )
    grid: Grid = Field(default=Grid(), description="Lists of values: one adapter is made for each combination.")

    @model_validator(mode="after")
    def _one_length(self) -> "AdapterEntry":
        epochs = self.num_epochs is not None or bool(self.grid.num_epochs)
        steps = self.max_steps is not None or bool(self.grid.max_steps)
        if epochs and steps:
            raise ValueError("num_epochs and max_steps are both given and each decides the length; keep one")
        return self

    @model_validator(mode="after")
    def _has_what_it_evaluates(self) -> "AdapterEntry":
        if self.eval_steps is not None and not self.val_split:
            raise ValueError("eval_steps is given but val_split keeps no samples to evaluate on; give both")
        for name in ("early_stopping_patience", "load_best_model_at_end"):
            if getattr(self, name) and self.eval_steps is None:
                raise ValueError(f"{name} is given but nothing is evaluated during training; give eval_steps too")
        return self


class PipelineEntry(_Entry):
    """How the model is spread over processes."""

    stages: Annotated[int, Field(ge=1)] = Field(default=1, description="Pipeline stages; at most the model's layers.")
    replicas: Annotated[int, Field(ge=1)] = Field(
        default=1, description="Copies of the pipeline, for data parallelism."
    )
    schedule: str = Field(default="1f1b", min_length=1, description="Order of forwards and backwards.")


class JobFile(_Entry):
    """A whole jobs.yaml."""

    base_model: str = Field(
        min_length=1,
        description="A model folder relative to the job file, a Hugging Face hub id, `tiny` (built in), or a shape.",
    )
    random_weights: bool = Field(
        default=False, description="Draw the base model's weights instead of reading them, to measure and to try."
    )
    num_layers: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="With random_weights, so many decoder layers instead of the model's own number."
    )
    load_in_4bit: bool = Field(
        default=False, description="Hold the frozen linears of the decoder layers in 4 bits (QLoRA)."
    )
    bnb_4bit_quant_type: Literal["nf4"] = Field(default="nf4", description="How load_in_4bit rounds weights.")
    bnb_4bit_use_double_quant: bool = Field(
        default=False, description="With load_in_4bit, round the maxima of its blocks of 64 weights as well."
    )
    sequence_len: Annotated[int, Field(ge=2, le=2**31)] = Field(default=2048, description="Most tokens of one sample.")
    long_samples: LongSamples = Field(default="error", description="What happens to samples above sequence_len.")
    chat_template: str | None = Field(
        default=None, min_length=1, description="A Jinja file that replaces the tokenizer's chat template."
    )
    defaults: dict[str, Any] = Field(
        default_factory=dict, description="Adapter settings for all adapters that do not give their own."
    )
    adapters: tuple[AdapterEntry, ...] = Field(strict=False, min_length=1, description="The adapters to train.")
    pipeline: PipelineEntry = Field(default=PipelineEntry(), description="How the model is spread over processes.")
    microbatch_tokens: Annotated[int, Field(ge=2, le=2**31)] | None = Field(
        default=None, description="Tokens that go through the pipeline together; sequence_len when absent."
    )
    recompute: RecomputeChoice = Field(
        default="auto", description="What the backward computes again to save memory; `auto`: as little as fits."
    )
    output_dir: str = Field(
        default="output", min_length=1, description="Folder for everything that is made, relative to the job file."
    )
    seed: Seed = Field(default=0, description="Seed of the adapters that give none.")
    report_to: Annotated[tuple[LoggerName, ...] | None, BeforeValidator(_as_list)] = Field(
        default=None,
        strict=False,
        description="Where to log beside the metrics files: `tensorboard`, `wandb` or both.",
    )
    on_nonfinite: OnNonfinite = Field(
        default="quarantine", description="What happens to an adapter whose loss or gradient is NaN or infinite."
    )
