"""Before a run starts: which activations it makes again, and whether it fits into its devices at all."""

import torch

from ..planner.gpus import Gpus
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
    gpus: Gpus | None,
    profile: CostProfile | None = None,
) -> RecomputeMode:
    """What is asked for, or under `auto` the least that fits, by the profile or else by the model's shapes.

    Without `gpus` nobody counts (a CPU), and everything fits. Raises PlanError, with numbers and with what to change,
    where it does not.
    """
    if gpus is None:
        return asked_recompute(asked) or "none"
    decision = decide_memory(
        plan,
        loaded.settings.base_model,
        asked=asked,
        evaluation=loaded.evaluation,
        profile=profile,
        gpus=gpus,
    )
    decision.check(plan)
    return decision.need.recompute


def agreed_recompute(mode: RecomputeMode, transport: Transport, *, num_workers: int) -> RecomputeMode:
    """The one that saves most among what the workers would take each by itself; all call it together."""
    wanted = torch.zeros(num_workers, dtype=torch.int64)
    wanted[transport.worker] = RECOMPUTE_MODES.index(mode)
    transport.host.reduce(wanted, workers=range(num_workers))
    return RECOMPUTE_MODES[int(wanted.max().item())]
