"""Before training a worker runs its first microbatch once, over made-up messages, and forgets it.

The first pass over a stage loads its kernels, and compiles those that no run has compiled before: 0.6 to 1 s of an 8B
model on an H200, minutes on a new machine. In training a stage would begin with it only when the stages before it are
through; here all do at once.
"""

from dataclasses import replace

from ..planner.plan import Plan
from ..planner.program import Action, ActionColumns, ActionKind, Program
from .batch import Packer, TokenSource
from .execute import Executor
from .itinerary import itinerary
from .loopback import LoopbackTransport
from .message import Wire
from .recorder import Recorder
from .stage import Stage


def warm_up(stage: Stage, plan: Plan, tokens: TokenSource) -> None:
    """Forward and backward of the plan's first microbatch. Adapters that have not been trained stay as they are.

    Raises what training would, as when memory runs out.
    """
    held = next(held for held in plan.microbatches if held.samples)
    alone = replace(plan, microbatches=(held,), num_replicas=1)
    columns = ActionColumns.of([Action(kind=kind, microbatch=0) for kind in (ActionKind.FORWARD, ActionKind.BACKWARD)])
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
