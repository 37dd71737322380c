"""Learning rates step by step: those of transformers' schedules of the same names."""

import math

import pytest
import torch
from transformers import get_scheduler

from loraplex.engine.learning_rate import learning_rate_at
from loraplex.planner.jobs import OptimizerSettings, Scheduler


@pytest.mark.parametrize("num_steps", [1, 2, 10, 33])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("scheduler", ["constant", "linear", "cosine"])
def test_every_rate_is_that_of_transformers(scheduler: Scheduler, warmup_ratio: float, num_steps: int) -> None:
    settings = OptimizerSettings(learning_rate=3e-3, lr_scheduler=scheduler, warmup_ratio=warmup_ratio)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-3)
    stock = get_scheduler(
        {"constant": "constant_with_warmup"}.get(scheduler, scheduler),
        optimizer,
        num_warmup_steps=math.ceil(warmup_ratio * num_steps),
        num_training_steps=num_steps,
    )
    for step in range(num_steps):
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate_at(step, settings=settings, num_steps=num_steps) == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        stock.step()
