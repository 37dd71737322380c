"""Before training a worker runs a few microbatches once, over made-up messages, and forgets them.

The first passes over a stage load its kernels, and compile those that no run has compiled before: 0.6 to 1 s of an 8B
model on an H200, minutes on a new machine. In training a stage would begin with it only when the stages before it are
through; here all do at once.
"""

from dataclasses import replace

from ..planner.plan import Microbatch, Plan
from .batch import TokenSource
from .device_memory import forget_peak
from .profile_plan import measuring_program
from .run_alone import run_alone
from .stage import Stage


def warm_up(stage: Stage, plan: Plan, tokens: TokenSource) -> None:
    """Forward and backward of `kinds` of the plan. Adapters that have not been trained stay as they are.

    Raises what training would, as when memory runs out.
    """
    alone = replace(plan, microbatches=kinds(plan), num_replicas=1)
    run_alone(stage, alone, measuring_program(alone, with_steps=False), tokens=tokens)
    # The backward closed the batches that it knew of.
    for adapter in stage.adapters:
        adapter.closed.clear()
    # What is told in the end is training's: loading weights and compiling may take more for a moment.
    forget_peak(stage.device)


def kinds(plan: Plan) -> tuple[Microbatch, ...]:
    """The first microbatch of every kind that has kernels of its own: of one adapter or several, with dropout or not.

    All of a first step, so that no adapter needs to have taken one.
    """
    found: dict[tuple[bool, bool], Microbatch] = {}
    for held in plan.microbatches:
        batches = held.global_batches()
        if batches and all(step == 0 for _, step in batches):
            drops = any(plan.jobs[adapter].lora.lora_dropout > 0 for adapter, _ in batches)
            found.setdefault((len(batches) > 1, drops), held)
    return tuple(found.values())
