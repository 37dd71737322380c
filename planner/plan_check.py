"""What `loraplex check` finds in a plan file: every violation, and slots and bound counted anew."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import JobError, PlanError
from .plan import Plan
from .plan_file import is_sealed, load_plan
from .plan_report import plan_figures, recomputed_bounds
from .verify import Violation, verify


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCheck:
    """The state of a readable plan file."""

    plan: Plan
    violations: tuple[Violation, ...]
    slots: int | None
    """Counted anew; None where the order of steps is broken."""
    lower_bound: int | None
    """Computed anew; None where the jobs themselves break a rule."""

    def is_valid(self) -> bool:
        """Whether nothing is wrong."""
        return not self.violations

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "valid": self.is_valid(),
            "violations": [
                {"rule": entry.rule, "message": entry.message, "microbatch": entry.microbatch}
                for entry in self.violations
            ],
            "slots": self.slots,
            "lower_bound": self.lower_bound,
            "gap": round(self.slots / self.lower_bound - 1, 6) if self.slots and self.lower_bound else None,
            "num_microbatches": len(self.plan.microbatches),
            "strategy": self.plan.strategy,
        }


def check_plan_file(path: Path) -> PlanCheck:
    """Read and check a plan file. Raises PlanError only where it cannot be read as a plan at all."""
    plan = load_plan(path, check=False)
    violations = verify(plan)
    if not is_sealed(path):
        seal = Violation(
            rule="fingerprint",
            message="the fingerprint does not fit the content: the plan was edited by hand or damaged; make it anew "
            "with loraplex plan",
        )
        violations = (seal, *violations)
    try:
        slots = plan_figures(plan).slots
    except PlanError:
        slots = None
    try:
        lower_bound = recomputed_bounds(plan).slots()
    except (JobError, PlanError):
        lower_bound = None
    return PlanCheck(plan=plan, violations=violations, slots=slots, lower_bound=lower_bound)
