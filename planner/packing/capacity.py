"""Choosing how many tokens a microbatch may hold: one plan for each, ranked by predicted makespan."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...traces.costs import CostProfile
from ..errors import JobError, PlanError
from ..plan import Plan
from .objective import predicted_makespan_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityTrial:
    """What one capacity led to."""

    microbatch_tokens: int
    plan: Plan | None
    """None where a sample does not fit."""
    makespan_ms: float
    """Predicted; infinite where there is no plan."""


def try_capacities(
    capacities: Sequence[int], *, plan_with: Callable[[int], Plan], profile: CostProfile | None
) -> tuple[CapacityTrial, ...]:
    """Plans for each capacity, the fastest first. Raises PlanError where none can be made, or without a profile.

    Slots of different capacity cannot be compared, so a cost profile must say what each costs.
    """
    if profile is None:
        raise PlanError(
            f"capacities {list(capacities)} cannot be compared without a cost profile; give --profile, or one "
            "--microbatch-tokens"
        )
    trials = []
    for capacity in dict.fromkeys(capacities):
        try:
            plan = plan_with(capacity)
        except JobError as error:
            if len(set(capacities)) == 1:
                raise
            refused = error
            trials.append(CapacityTrial(microbatch_tokens=capacity, plan=None, makespan_ms=float("inf")))
        else:
            time_ms = predicted_makespan_ms(plan, profile)
            trials.append(CapacityTrial(microbatch_tokens=capacity, plan=plan, makespan_ms=time_ms))
    if all(trial.plan is None for trial in trials):
        raise PlanError(f"no plan at any of the capacities {list(capacities)}: {refused}")
    return tuple(sorted(trials, key=lambda trial: (trial.makespan_ms, trial.microbatch_tokens)))
