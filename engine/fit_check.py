"""Before a run starts: which activations it makes again, and whether it fits into its devices at all."""

import torch

from ..planner.inputs.loaded_jobs import LoadedJobs
from ..planner.memory_decision import decide_memory
from ..planner.plan import Plan
from ..traces.costs import CostProfile
from ..traces.memory_costs import RECOMPUTE_MODES, RecomputeChoice, RecomputeMode, asked_recompute
from .transport import Transport


def settled_recompute(
    plan: Plan,
    loaded: LoadedJobs,
    *,
    asked: RecomputeChoice,
    capacity_bytes: float | None,
    profile: CostProfile | None = None,
) -> RecomputeMode:
    """What is asked for, or under `auto` the least that fits, by the profile or else by the model's shapes.

    `capacity_bytes` is what one stage may take; None where nobody counts (a CPU), and then everything fits. Raises
    PlanError, with numbers and with what to change, where it does not.
    """
    if capacity_bytes is None:
        return asked_recompute(asked) or "none"
    decision = decide_memory(
        plan, loaded.settings.base_model, asked=asked, profile=profile, capacity_bytes=capacity_bytes
    )
    decision.check(plan)
    return decision.need.recompute


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
