"""The learning rate of each optimizer step, as a function of the step: nothing to save, nothing to resume."""

import math

from ..planner.jobs import OptimizerSettings

RISKY_RATE = 0.1
"""Behind a step at this rate or above nothing is taken for granted: the weights before it are kept until the next loss
and gradient show that it was a good one. AdamW moves each weight by about the rate; LoRA's begin at some hundredths.
Rates from 1e5 on made the next loss or gradient, or the one after, no number (tests' model, 2026-11-26)."""
_LARGEST = 3.4028e38
"""Of float32, in which adapters train."""


def holds(rate: float, *, settings: OptimizerSettings) -> bool:
    """Whether float32 can hold a weight that moved by AdamW's largest first step, rate / (1 - beta1)."""
    return rate <= _LARGEST * (1.0 - settings.betas[0])


def learning_rate_at(step: int, *, settings: OptimizerSettings, num_steps: int) -> float:
    """Learning rate of optimizer step `step` (from 0) of `num_steps`.

    The factors are those of transformers' schedules of the same names: a linear warmup from 0 over
    ceil(warmup_ratio * num_steps) steps, then constant, linear to 0, or half a cosine to 0.
    """
    num_warmup = math.ceil(settings.warmup_ratio * num_steps)
    if step < num_warmup:
        return settings.learning_rate * step / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    match settings.lr_scheduler:
        case "constant":
            factor = 1.0
        case "linear":
            factor = max(0.0, 1.0 - progress)
        case "cosine":
            factor = max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    return settings.learning_rate * factor
