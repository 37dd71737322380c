"""A Plan in figures: what `loraplex plan` and `loraplex check` print and what a plan file's summary holds."""

from dataclasses import dataclass
from typing import Any

from rich.table import Table

from ..traces.counted import counted
from .dependencies import plan_slots
from .packing.lower_bounds import LowerBounds, lower_bounds
from .packing.workload import workload_of
from .plain_table import adapters_table
from .plan import Plan
from .waste import waste_by_adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFigures:
    """The quality of a plan, counted from its microbatches."""

    num_microbatches: int
    slots: int
    """Slots the stream takes, waits included."""
    stall_slots: int
    """Slots among them in which nothing enters, since dependents must wait."""
    lower_bound: int

    def gap(self) -> float:
        """Slots above the lower bound, as a share of it."""
        return self.slots / self.lower_bound - 1 if self.lower_bound else 0.0


def plan_figures(plan: Plan) -> PlanFigures:
    """Figures of a plan whose order holds; raises PlanError where a step enters before the one it needs is complete."""
    slots = plan_slots(plan)
    return PlanFigures(
        num_microbatches=sum(bool(batch.samples) for batch in plan.microbatches),
        slots=slots,
        stall_slots=slots - plan.num_slots(),
        lower_bound=plan.lower_bound_slots,
    )


def recomputed_bounds(plan: Plan) -> LowerBounds:
    """The lower bounds of a plan's jobs, from scratch."""
    return lower_bounds(
        workload_of(
            plan.jobs,
            microbatch_tokens=plan.microbatch_tokens,
            num_stages=plan.num_stages,
            num_replicas=plan.num_replicas,
            pad_multiple=plan.pad_multiple,
            schedule=plan.schedule,
        )
    )


def plan_as_json(plan: Plan, *, valid: bool) -> dict[str, Any]:
    """The object that `--json` prints."""
    figures = plan_figures(plan)
    return {
        "num_microbatches": figures.num_microbatches,
        "stall_slots": figures.stall_slots,
        "slots": figures.slots,
        "lower_bound": figures.lower_bound,
        "gap": round(figures.gap(), 6),
        "seconds": round(plan.seconds, 6),
        "strategy": plan.strategy,
        "valid": valid,
        "num_tokens": plan.num_tokens(),
        "num_stages": plan.num_stages,
        "num_replicas": plan.num_replicas,
        "microbatch_tokens": plan.microbatch_tokens,
        "adapters": waste_as_json(plan),
        "notes": [record.status for record in plan.solver if record.instance == "plan"],
    }


def waste_as_json(plan: Plan) -> list[dict[str, Any]]:
    """Per adapter: tokens, and what is padded, left unused and waited for on its account."""
    return [
        {
            "name": job.name,
            "num_tokens": waste.num_tokens,
            "num_microbatches": waste.num_microbatches,
            "padding_tokens": waste.padding_tokens,
            "unused_tokens": round(waste.capacity_waste_tokens, 1),
            "stall_slots": round(waste.stall_slots, 2),
        }
        for job, waste in zip(plan.jobs, waste_by_adapter(plan), strict=True)
    ]


def plan_line(plan: Plan) -> str:
    """The plan in one sentence."""
    figures = plan_figures(plan)
    return (
        f"{counted(figures.num_microbatches, 'microbatch')} in {counted(figures.slots, 'slot')} (at least "
        f"{figures.lower_bound}; gap {figures.gap():.2%}), {figures.stall_slots} of them waiting; by "
        f"{plan.strategy} in {plan.seconds:.2f} s"
    )


def plan_table(plan: Plan) -> Table:
    """One row an adapter, with what it wastes."""
    table = adapters_table(("steps", "samples", "tokens", "micro-\nbatches", "padding", "unused", "stalls"))
    for job, waste in zip(plan.jobs, waste_by_adapter(plan), strict=True):
        table.add_row(
            job.name,
            str(len(job.global_batches)),
            str(job.num_samples()),
            f"{waste.num_tokens:,}",
            str(waste.num_microbatches),
            f"{waste.padding_ratio():.1%}",
            f"{waste.capacity_waste_ratio():.1%}",
            f"{waste.stall_slots:.1f}",
        )
    return table
