"""One stage through a Program without its neighbours: what they would send is made up."""

from collections.abc import Callable

from ..planner.plan import Plan
from ..planner.program import Action, Program
from .batch import TokenSource
from .execute import Executor
from .itinerary import Leg, itinerary
from .loopback import LoopbackTransport
from .message import Wire
from .packer import Packer
from .pool_tokens import PoolTokens
from .recorder import Recorder
from .stage import Stage


def run_alone(
    stage: Stage,
    plan: Plan,
    program: Program,
    *,
    tokens: TokenSource | None = None,
    recorder: Recorder | None = None,
    before_leg: Callable[[Leg], None] | None = None,
) -> list[tuple[Action, float]]:
    """Every action of the stage with what it took in ms. `tokens` are random ones when absent."""
    index, model = stage.layout.stage, stage.model
    legs = itinerary(program, plan, stage=index)
    wire = Wire(hidden_size=model.config.hidden_size, dtype=next(model.parameters()).dtype, device=stage.device)
    recorder = recorder or Recorder(stage=index, device=stage.device)
    Executor(
        stage,
        plan,
        Packer(plan.jobs, tokens or PoolTokens(model.config.vocab_size), device=stage.device, buckets=stage.buckets),
        LoopbackTransport(legs, wire, worker=index),
        recorder=recorder,
        # Made-up gradients may run away; a halted adapter would leave out the work that is measured.
        on_nonfinite="skip",
        before_leg=before_leg,
    ).run(legs)
    return [(leg.action, ms) for leg, ms in zip(legs, recorder.compute_ms(), strict=True)]
