"""Before training a worker runs a few microbatches once, over made-up messages, and forgets them.

The first passes over a stage load its kernels, and compile those that no run has compiled before: 0.6 to 1 s of an 8B
model on an H200, minutes on a new machine. In training a stage would begin with it only when the stages before it are
through; here all do at once.
"""

from dataclasses import replace

from ..planner.plan import Microbatch, Plan
from ..planner.program import Action, ActionColumns, ActionKind, Program
from .batch import Packer, TokenSource
from .execute import Executor
from .itinerary import itinerary
from .loopback import LoopbackTransport
from .message import Wire
from .recorder import Recorder
from .stage import Stage


def warm_up(stage: Stage, plan: Plan, tokens: TokenSource) -> None:
    """Forward and backward of `kinds` of the plan. Adapters that have not been trained stay as they are.

    Raises what training would, as when memory runs out.
    """
    held = kinds(plan)
    alone = replace(plan, microbatches=held, num_replicas=1)
    passes = (ActionKind.FORWARD, ActionKind.BACKWARD)
    columns = ActionColumns.of([Action(kind=kind, microbatch=place) for place in range(len(held)) for kind in passes])
    program = Program(schedule="warming up", num_stages=plan.num_stages, workers=(columns,) * plan.num_stages)
    index = stage.layout.stage
    legs = itinerary(program, alone, stage=index)
    weight = next(stage.model.parameters())
    wire = Wire(hidden_size=stage.model.config.hidden_size, dtype=weight.dtype, device=stage.device)
    Executor(
        stage,
        alone,
        Packer(plan.jobs, tokens, device=stage.device),
        LoopbackTransport(legs, wire, worker=index),
        recorder=Recorder(stage=index, device=stage.device),
    ).run(legs)
    # The backward closed the batches that it knew of.
    for adapter in stage.adapters:
        adapter.closed.clear()


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
