"""The nouns that come in: one `Job` per adapter, made of global batches of `Sample`s.

A Job is what remains of a user's YAML and texts once every default is filled in and every text is a length.
The planner needs nothing else; the engine finds the tokens again through `Sample.index`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Scheduler = Literal["constant", "linear", "cosine"]
LoggerName = Literal["tensorboard", "wandb"]
OnNonfinite = Literal["quarantine", "skip", "stop"]
"""What happens to an adapter whose loss or gradient is no finite number: see docs/jobs.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One training example of one adapter."""

    adapter: int
    """Position of its Job in the plan's jobs."""
    global_batch: int
    """The optimizer step it feeds, counted from 0 within its adapter."""
    index: int
    """Position in its adapter's training order, unique over the whole run (a second epoch counts on)."""
    num_tokens: int
    num_target_tokens: int
    """Tokens that enter the loss; equal to num_tokens when planning from lengths alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """How an adapter is built. Names follow PEFT, so that they can be written to adapter_config.json as they are."""

    r: int = 16
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] = ("all-linear",)
    use_rslora: bool = False

    def scaling(self) -> float:
        """Factor on the LoRA branch: alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732)."""
        return float(self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r))


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """AdamW and its schedule, per adapter. Defaults are torch's AdamW except where users expect otherwise."""

    learning_rate: float = 2e-4
    lr_scheduler: Scheduler = "linear"
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    """Global norm over all layers of this adapter; None switches clipping off."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """When an adapter's validation loss is looked at during training, and what follows from it."""

    eval_steps: int | None = None
    """Optimizer steps from one evaluation to the next; None: only before and after training."""
    early_stopping_patience: int | None = None
    """Evaluations in a row without a lower loss after which the adapter takes no more steps."""
    load_best_model_at_end: bool = False
    """Whether the weights of the evaluation with the lowest loss are exported, not the last ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One adapter to train: its settings and its samples, already cut into global batches in training order."""

    name: str
    global_batches: tuple[tuple[Sample, ...], ...]
    lora: LoraSettings = field(default_factory=LoraSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    seed: int = 0
    weight: float = 1.0
    """Importance under the planner's `fair` objective."""
    deadline_ms: float | None = None
    """Latest wished completion under the planner's `fair` objective."""

    def num_tokens(self) -> int:
        """Tokens of the whole run of this adapter."""
        return sum(sample.num_tokens for batch in self.global_batches for sample in batch)

    def num_samples(self) -> int:
        """Samples of the whole run of this adapter."""
        return sum(len(batch) for batch in self.global_batches)

    def target_tokens(self, global_batch: int) -> int:
        """Target tokens of one global batch: the divisor of its loss."""
        return sum(sample.num_target_tokens for sample in self.global_batches[global_batch])


def job_from_lengths(
    *,
    adapter: int,
    name: str,
    lengths: Sequence[int],
    global_batch_size: int,
    target_lengths: Sequence[int] | None = None,
    lora: LoraSettings | None = None,
    optimizer: OptimizerSettings | None = None,
    seed: int = 0,
) -> Job:
    """Cut samples, given as token lengths in training order, into global batches (the last may be short).

    `target_lengths` are the target tokens of each sample, all tokens when absent. Rules on values are the callers';
    this is only the cut.
    """
    targets = lengths if target_lengths is None else target_lengths
    samples = [
        Sample(
            adapter=adapter,
            global_batch=index // global_batch_size,
            index=index,
            num_tokens=int(num_tokens),
            num_target_tokens=int(num_targets),
        )
        for index, (num_tokens, num_targets) in enumerate(zip(lengths, targets, strict=True))
    ]
    batches = tuple(
        tuple(samples[first : first + global_batch_size]) for first in range(0, len(samples), global_batch_size)
    )
    return Job(
        name=name,
        global_batches=batches,
        lora=lora or LoraSettings(),
        optimizer=optimizer or OptimizerSettings(),
        seed=seed,
    )
