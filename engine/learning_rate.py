"""The learning rate of each optimizer step, as a function of the step: nothing to save, nothing to resume."""

import math

from ..planner.jobs import OptimizerSettings


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
