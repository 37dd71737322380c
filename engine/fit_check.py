"""Before a run starts: which activations it makes again, and whether it fits into its devices at all."""

from dataclasses import replace

import torch

from ..planner.inputs.loaded_jobs import LoadedJobs
from ..planner.memory_check import changes, cheapest_that_fits, check_fits
from ..planner.memory_formula import memory_of_shapes
from ..planner.model_shapes import ModelShapes
from ..planner.plan import Plan
from ..traces.memory_costs import RECOMPUTE_MODES, RecomputeChoice, RecomputeMode, asked_recompute
from .transport import Transport


def settled_recompute(
    plan: Plan, loaded: LoadedJobs, *, asked: RecomputeChoice, capacity_bytes: float | None
) -> RecomputeMode:
    """What is asked for, or under `auto` the least that fits, by the formula of planner/memory_formula.py.

    `capacity_bytes` is what one stage may take; None where nobody counts (a CPU), and then everything fits. Raises
    PlanError, with numbers and with what to change, where it does not.
    """
    named = asked_recompute(asked)
    if capacity_bytes is None:
        return named or "none"
    model = loaded.settings.base_model
    shapes, in_4bit = ModelShapes.of(model), model.is_in_4bit()
    memory = memory_of_shapes(
        shapes, plan.jobs, num_stages=plan.num_stages, load_in_4bit=in_4bit, capacity_bytes=capacity_bytes
    )
    need = cheapest_that_fits(plan, memory=memory, num_layers=shapes.num_layers, asked=named)
    if need.peak_bytes() > capacity_bytes:
        four_bit = replace(memory, layer_weight_bytes=shapes.layer_weight_bytes(load_in_4bit=True))
        found = changes(plan, need, memory=memory, num_layers=shapes.num_layers, four_bit=None if in_4bit else four_bit)
        check_fits(plan, need, found, capacity_bytes=capacity_bytes)
    return need.recompute


def share_of_device(free_bytes: tuple[int, ...], *, num_workers: int) -> float | None:
    """What each of so many workers may take of these GPUs; None without any."""
    if not free_bytes:
        return None
    return min(free_bytes) / -(-num_workers // len(free_bytes))


def agreed_recompute(mode: RecomputeMode, transport: Transport, *, num_workers: int) -> RecomputeMode:
    """The one that saves most among what the workers would take each by itself; all call it together."""
    wanted = torch.zeros(num_workers, dtype=torch.int64)
    wanted[transport.worker] = RECOMPUTE_MODES.index(mode)
    transport.host.reduce(wanted, workers=range(num_workers))
    return RECOMPUTE_MODES[int(wanted.max().item())]
