"""Measures stages and links with the engine's own code, in processes side by side as in training."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..planner.jobs import Job
from ..planner.loads import Loads
from ..planner.plan import Plan
from ..planner.program import Action, ActionKind
from .batch import TokenSource
from .itinerary import Leg
from .message import Message, Wire
from .model import Layout
from .nf4_linear import held_bytes
from .profile_plan import measuring_plan, measuring_program
from .recorder import Recorder, now_ns
from .run_alone import run_alone
from .stage import Stage, make_stage_of
from .transport import Direction, Edge, Transport
from .weight_source import FROM_FOLDER, WeightSource

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StagePoints:
    """What one stage took: medians over the rounds."""

    loads: Loads
    forward_ms: Float
    """One entry per microbatch."""
    backward_ms: Float
    step_ms: float
    """Mean over adapters and steps."""
    weight_bytes: int
    """Of the frozen weights."""
    adapter_bytes: float
    """Of one adapter's weights, mean over adapters."""
    kept_bytes: Float
    """What each microbatch's forward keeps for its backward, weights left out."""


def measure_stages(
    folder: Path,
    jobs: Sequence[Job],
    layouts: Sequence[Layout],
    transport: Transport,
    *,
    num_workers: int,
    capacity_tokens: int,
    weights: WeightSource = FROM_FOLDER,
    seconds: float = 12.0,
) -> tuple[StagePoints, ...]:
    """Run stages of several kinds over made-up messages, in turn, for about `seconds` and at most 7 times.

    All workers call it together, so that they keep each other's cores busy as in a run.
    """
    plan = measuring_plan(jobs, capacity_tokens=capacity_tokens, num_stages=layouts[0].num_stages)
    stages = [make_stage_of(folder, plan.jobs, layout, weights=weights) for layout in layouts]
    begin_ns = now_ns()
    kept = [_kept_bytes(stage, plan) for stage in stages]
    afforded = min(7, max(1, int(seconds * 1e9 / (now_ns() - begin_ns))))
    rounds = agreed_rounds(afforded, transport, num_workers)
    taken: list[dict[ActionKind, list[Float]]] = [defaultdict(list) for _ in stages]
    for _ in range(rounds):
        for stage, found in zip(stages, taken, strict=True):
            transport.barrier()
            spans = run_round(stage, plan)
            for kind in (ActionKind.FORWARD, ActionKind.BACKWARD, ActionKind.STEP):
                found[kind].append(np.array([ms for action, ms in spans if action.kind is kind]))
    return tuple(
        _points(stage, found, plan, kept_bytes=own) for stage, found, own in zip(stages, taken, kept, strict=True)
    )


def agreed_rounds(rounds: int, transport: Transport, num_workers: int) -> int:
    """The fewest rounds that any worker can afford: everybody must come to the same barriers."""
    afforded = torch.zeros(num_workers, dtype=torch.int64)
    afforded[transport.worker] = rounds
    transport.reduce(afforded, workers=range(num_workers))
    return int(afforded.min().item())


def _points(stage: Stage, taken: Mapping[ActionKind, Sequence[Float]], plan: Plan, *, kept_bytes: Float) -> StagePoints:
    adapters = [sum(weight.nbytes for weight in adapter.parameters.values()) for adapter in stage.adapters]
    return StagePoints(
        loads=Loads.of(plan.microbatches, jobs=plan.jobs),
        forward_ms=_usual(taken[ActionKind.FORWARD]),
        backward_ms=_usual(taken[ActionKind.BACKWARD]),
        step_ms=float(_usual(taken[ActionKind.STEP]).mean()),
        weight_bytes=held_bytes(stage.model),
        adapter_bytes=float(np.mean(adapters)),
        kept_bytes=kept_bytes,
    )


def _usual(rounds: Sequence[Float]) -> Float:
    return np.asarray(np.median(np.stack(rounds), axis=0), dtype=np.float64)


def _kept_bytes(stage: Stage, plan: Plan) -> Float:
    # One round, counting each storage that autograd saves once, however many views of it are saved.
    weights = [
        *stage.model.parameters(),
        *stage.model.buffers(),
        *(w for adapter in stage.adapters for w in adapter.parameters.values()),
    ]
    own = {weight.untyped_storage().data_ptr() for weight in weights}
    saved: dict[int, int] = {}
    found = []

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    def count(leg: Leg) -> None:
        # The next leg is the forward's own backward, so all that was saved is of one microbatch.
        if leg.action.kind is ActionKind.BACKWARD:
            found.append(sum(saved.values()))
        saved.clear()

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        run_round(stage, plan, before_leg=count)
    return np.array(found, dtype=np.float64)


def run_round(
    stage: Stage,
    plan: Plan,
    *,
    tokens: TokenSource | None = None,
    recorder: Recorder | None = None,
    before_leg: Callable[[Leg], None] | None = None,
) -> list[tuple[Action, float]]:
    """Every action of the measuring program of a plan, made-up messages around it, with what it took in ms.

    `tokens` are random ones when absent.
    """
    stage.rewind()
    return run_alone(stage, plan, measuring_program(plan), tokens=tokens, recorder=recorder, before_leg=before_leg)


def _there(device: torch.device) -> None:
    # On a GPU the host has only asked for it.
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_link(transport: Transport, wire: Wire, *, num_tokens: Sequence[int], rounds: int = 30) -> list[float]:
    """Milliseconds from having a payload on worker 0 to having it on worker 1, by size: half a round trip, median.

    Packing and unpacking count. Workers beyond the second only wait, and return nothing.
    """
    down = Edge(source=0, target=1, direction=Direction.DOWN)
    up = Edge(source=1, target=0, direction=Direction.UP)
    found = []
    for tokens in num_tokens:
        message = Message(direction=Direction.DOWN, num_tokens=tokens)
        payload = torch.zeros(message.shape(wire.hidden_size), dtype=wire.dtype, device=wire.device)
        none = torch.empty(0, dtype=torch.float64, device=wire.device)
        transport.barrier()
        trips = []
        for _ in range(rounds if transport.worker < 2 else 0):
            out, back = (down, up) if transport.worker == 0 else (up, down)
            start_ns = now_ns()
            receive = transport.post(back, wire.num_bytes(message))
            if transport.worker == 0:
                transport.send(out, wire.pack(message, payload=payload, norms=none, clock_ns=0))
                wire.unpack(message, receive.wait())
                _there(wire.device)
            else:
                came, _ = wire.unpack(message, receive.wait())
                transport.send(out, wire.pack(message, payload=came, norms=none, clock_ns=0))
                _there(wire.device)
            trips.append((now_ns() - start_ns) / 2e6)
        transport.finish()
        if trips:
            found.append(float(np.median(trips)))
    return found
