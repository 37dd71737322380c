"""Which linears an adapter changes: PEFT's rule for `target_modules`, applied to the decoder layers."""

from collections.abc import Sequence

from ..planner.errors import JobError
from ..planner.jobs import Job

ALL_LINEAR = "all-linear"


def targeted(linear: str, target_modules: Sequence[str]) -> bool:
    """Whether a linear, named as in the whole model, is one of the targets: equal to one, or ending in `.` and it."""
    return ALL_LINEAR in target_modules or any(
        linear == target or linear.endswith("." + target) for target in target_modules
    )


def check_targets(jobs: Sequence[Job], linears: Sequence[str]) -> None:
    """Raise JobError for an adapter one of whose targets matches no linear of the model's decoder layers."""
    known = sorted({linear.rpartition(".")[2] for linear in linears})
    for job in jobs:
        for target in job.lora.target_modules:
            if not any(targeted(linear, (target,)) for linear in linears):
                raise JobError(
                    f"adapter '{job.name}': target_modules entry '{target}' matches no linear of a decoder layer; "
                    f"choose from {', '.join(known)} or {ALL_LINEAR}"
                )


def short_targets(linears: Sequence[str], target_modules: Sequence[str]) -> tuple[str, ...]:
    """The last parts of the names of the targeted linears, sorted: what adapter_config.json lists."""
    return tuple(sorted({name.rpartition(".")[2] for name in linears if targeted(name, target_modules)}))
