"""One decision for `loraplex estimate` and `loraplex train`: what a run needs, what it recomputes, whether it fits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..traces.costs import CostProfile, MemoryCosts
from ..traces.counted import counted
from ..traces.memory_costs import RecomputeChoice, asked_recompute
from .errors import PlanError
from .gpus import Gpus, one_gpu_each
from .inputs.base_model import BaseModel
from .jobs import EvaluationSettings
from .memory_check import Change, Need, changes, cheapest_that_fits, check_fits, share_text
from .memory_formula import memory_for_jobs, memory_of_shapes, with_best_copies, with_graphs
from .model_shapes import ModelShapes
from .plan import Plan

SHAPES = "shapes"
"""Where numbers of memory come from when nothing was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryDecision:
    """What a run needs of its devices, and what would help where it does not fit."""

    memory: MemoryCosts
    """Of these jobs on this model; its capacity is what each stage may take."""
    memory_from: str
    """The profile's name, or `SHAPES`."""
    need: Need
    gpus: Gpus
    changes: tuple[Change, ...]
    """Empty where it fits."""

    def fits(self) -> bool:
        """Whether every stage has room, or nobody counts."""
        return self.need.peak_bytes() <= self.memory.capacity_bytes

    def capacity_bytes(self) -> float | None:
        """What each stage may take; None where that is not known."""
        return self.memory.capacity_bytes if self.memory.capacity_bytes < float("inf") else None

    def share_text(self, plan: Plan) -> str:
        """What a stage may take, and how many share a GPU: the end of a sentence about it."""
        return share_text(plan, self.gpus)

    def check(self, plan: Plan) -> None:
        """Raise PlanError with numbers and mends where the plan does not fit."""
        check_fits(plan, self.need, self.changes, gpus=self.gpus)


def decide_memory(
    plan: Plan,
    model: BaseModel,
    *,
    asked: RecomputeChoice,
    evaluation: Sequence[EvaluationSettings],
    profile: CostProfile | None = None,
    gpus: Gpus | None = None,
) -> MemoryDecision:
    """Memory by the profile where it holds any, else by the model's shapes.

    `evaluation`: one per job of the plan. Without `gpus` each stage has one of its own, such as the profile's if it
    knows.

    Raises PlanError for the profile of another model, JobError for a config.json that lacks a size.
    """
    shapes, in_4bit = ModelShapes.of(model), model.is_in_4bit()
    if profile is not None:
        check_profile_model(profile, model)
    measured = profile if profile is not None and profile.memory.knows_activations() else None
    if measured is None:
        memory = memory_of_shapes(shapes, plan.jobs, num_stages=plan.num_stages)
    else:
        memory = memory_for_jobs(measured.memory, shapes, plan.jobs)
    memory = with_graphs(with_best_copies(memory, shapes, plan.jobs, evaluation), shapes)
    four_bit = replace(memory, layer_weight_bytes=shapes.layer_weight_bytes(load_in_4bit=True))
    memory = four_bit if in_4bit else memory
    gpus = gpus or one_gpu_each(memory.capacity_bytes)
    memory = replace(memory, capacity_bytes=gpus.share_bytes(plan.num_workers()))
    need = cheapest_that_fits(plan, memory=memory, num_layers=shapes.num_layers, asked=asked_recompute(asked))
    found: tuple[Change, ...] = ()
    if need.peak_bytes() > memory.capacity_bytes:
        found = changes(
            plan,
            need,
            memory=memory,
            gpus=gpus,
            num_layers=shapes.num_layers,
            four_bit=None if in_4bit else four_bit,
        )
    return MemoryDecision(
        memory=memory,
        memory_from=SHAPES if measured is None else measured.name,
        need=need,
        gpus=gpus,
        changes=found,
    )


def check_profile_model(profile: CostProfile, model: BaseModel) -> None:
    """Raise PlanError for a profile that cannot be of this model."""
    if profile.num_layers != model.num_layers:
        raise PlanError(
            f"profile '{profile.name}' is of a model of {counted(profile.num_layers, 'layer')}, the base model "
            f"{model.name} has {model.num_layers}; give the profile of this model, "
            f"loraplex profile {model.name} measures one"
        )
