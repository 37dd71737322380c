"""What makes one plan better than another: scores of bins, smaller is better, compared as tuples."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...traces.costs import CostProfile
from ..build_program import build_program
from ..costing import program_costs
from ..dependencies import slot_numbers, waits_for
from ..errors import PlanError
from ..jobs import Job
from ..loads import Loads
from ..plan import Plan
from ..recurrence import makespan_ms
from .lower_bounds import chain_bound
from .pack_greedy import Bins
from .workload import Workload

Score = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fairness:
    """What the `fair` objective holds a plan to, per adapter, in slots."""

    alone: tuple[int, ...]
    """Slots of each adapter if it ran by itself, at least."""
    weights: tuple[float, ...]
    deadlines: tuple[int | None, ...]

    def due(self, slowdown: float) -> tuple[int, ...]:
        """The slot each adapter must end by, under this weighted slowdown and its deadline."""
        wished = [
            max(alone, int(slowdown * alone / weight)) for alone, weight in zip(self.alone, self.weights, strict=True)
        ]
        return tuple(
            slots if deadline is None else min(slots, deadline)
            for slots, deadline in zip(wished, self.deadlines, strict=True)
        )

    def score(self, ends: Sequence[int]) -> Score:
        """(deadlines missed, worst weighted slowdown, mean weighted slowdown)."""
        slowdowns = [weight * end / alone for end, alone, weight in zip(ends, self.alone, self.weights, strict=True)]
        missed = sum(
            deadline is not None and end > deadline for end, deadline in zip(ends, self.deadlines, strict=True)
        )
        return missed, max(slowdowns), sum(slowdowns) / len(slowdowns)


def fairness_of(
    jobs: Sequence[Job], *, bounds: Sequence[Sequence[int]], gap_slots: int, slot_ms: float | None
) -> Fairness:
    """Fairness in slots; `slot_ms` turns deadlines into slots. Raises PlanError where it is needed and absent."""
    for job in jobs:
        if job.weight <= 0:
            raise PlanError(f"adapter '{job.name}': weight={job.weight} must be above 0; correct it")
        if job.deadline_ms is not None and slot_ms is None:
            raise PlanError(
                f"adapter '{job.name}' has deadline_ms={job.deadline_ms}, but without a cost profile slots have no "
                "duration; give a profile or drop the deadline"
            )
    return Fairness(
        alone=tuple(chain_bound([chain], gap_slots=gap_slots) for chain in bounds),
        weights=tuple(job.weight for job in jobs),
        deadlines=tuple(
            None if job.deadline_ms is None or slot_ms is None else int(job.deadline_ms / slot_ms) for job in jobs
        ),
    )


def adapter_ends(workload: Workload, bins: Bins) -> list[int]:
    """The slot by whose end each adapter has placed all its samples (1 for an adapter through after slot 0)."""
    per_slot = workload.num_replicas
    rows = [
        {
            (workload.samples[item].adapter, workload.samples[item].global_batch)
            for items in bins[first : first + per_slot]
            for item in items
        }
        for first in range(0, len(bins), per_slot)
    ]
    numbers = slot_numbers(waits_for([tuple(row) for row in rows]), gap=workload.gap_slots)
    ends = [0] * len(workload.chains)
    for number, row in zip(numbers, rows, strict=True):
        for adapter, _ in row:
            ends[adapter] = number + 1
    return ends


def predicted_makespan_ms(plan: Plan, profile: CostProfile) -> float:
    """What the recurrence makes of a plan under this profile."""
    program = build_program(plan, profile=profile)
    return makespan_ms(program_costs(program, plan, profile))


def full_slot_ms(profile: CostProfile, *, plan: Plan) -> float:
    """Mean time a slot of this plan takes on its slowest stage."""
    loads = Loads.of(plan.microbatches, jobs=plan.jobs, pad_multiple=plan.pad_multiple)
    stages = profile.stages(num_stages=plan.num_stages)
    return max(float((loads.forward_ms(stage) + loads.backward_ms(stage)).mean()) for stage in stages)
