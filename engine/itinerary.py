"""From a Program to one worker's itinerary: for every action, what must have come, what goes out, what to post ahead.

Everything here follows from plan and Program before anything runs. The rules are DESIGN section 4: norm shares ride
the gradient messages up to stage 0, totals ride the activations down to where each Step needs them, totals without a
later forward go down in one last message; before any action starts, its own receive and that of the next forward or
backward are posted (Steps between them do not count as actions: a worker that waited there would deadlock).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..planner.errors import PlanError
from ..planner.plan import Plan
from ..planner.program import Action, ActionKind, Program
from .message import Message
from .transport import Direction

Batch = tuple[int, int]
"""(adapter, global batch)."""
_RUNNABLE = (ActionKind.FORWARD, ActionKind.BACKWARD, ActionKind.REDUCE, ActionKind.STEP, ActionKind.EVALUATE)
_DOWNWARD = (ActionKind.FORWARD, ActionKind.EVALUATE)
_STREAMING = (ActionKind.FORWARD, ActionKind.BACKWARD, ActionKind.EVALUATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """One action of a worker with all that surrounds it."""

    action: Action
    word: str
    """The Program's word for it, such as 0F3."""
    post: tuple[Message, ...] = ()
    """Receives to post before it starts."""
    receive: Message | None = None
    """What it waits for."""
    send: Message | None = None
    """What goes out after it."""
    closes: tuple[Batch, ...] = ()
    """Batches whose gradients are whole on this stage after it: their norm shares are taken here."""


def itinerary(program: Program, plan: Plan, *, stage: int, replica: int = 0) -> tuple[Leg, ...]:
    """The legs of one worker, one for each of its actions. Raises PlanError for a Program that we cannot run."""
    check_runnable(program)
    actions = tuple(program.actions(stage=stage, replica=replica))
    closing = _closing(actions, plan)
    opening, tail = _openings(actions)
    legs: list[Leg] = []
    for place, action in enumerate(actions):
        receive: Message | None = None
        send: Message | None = None
        closes: tuple[Batch, ...] = ()
        if action.kind in _DOWNWARD:
            message = _down(plan, action.microbatch, opening[action.microbatch])
            receive, send = _ends(message, stage=stage, num_stages=program.num_stages)
        elif action.kind is ActionKind.BACKWARD:
            closes = closing[action.microbatch]
            message = _up(plan, action.microbatch, closes)
            send, receive = _ends(message, stage=stage, num_stages=program.num_stages)
        elif action.kind is ActionKind.REDUCE:
            closes = ((action.adapter, action.global_batch),)
            message = Message(direction=Direction.UP, batches=closes)
            send, receive = _ends(message, stage=stage, num_stages=program.num_stages)
        elif (action.adapter, action.global_batch) in tail:
            message = Message(direction=Direction.DOWN, batches=tail)
            receive, send = _ends(message, stage=stage, num_stages=program.num_stages)
            send = send if place == len(actions) - 1 else None
        else:
            following = next(later for later in actions[place:] if later.kind in _DOWNWARD)
            message = _down(plan, following.microbatch, opening[following.microbatch])
            receive, _ = _ends(message, stage=stage, num_stages=program.num_stages)
        word = action.text(stage=stage, num_stages=program.num_stages)
        legs.append(Leg(action=action, word=word, receive=receive, send=send, closes=closes))
    return tuple(_with_posts(legs))


def check_runnable(program: Program) -> None:
    """Raise PlanError for a schedule that the engine does not run."""
    if program.num_chunks > 1:
        raise PlanError(
            f"schedule '{program.schedule}' has {program.num_chunks} model chunks a stage; the engine runs schedules "
            "with one: choose 1f1b, or simulate this one"
        )
    kinds = {int(kind) for columns in program.workers for kind in columns.kind}
    for kind in sorted(kinds - {int(kind) for kind in _RUNNABLE}):
        raise PlanError(
            f"schedule '{program.schedule}' holds {ActionKind(kind).name} actions; the engine does not split "
            "backwards: choose 1f1b, or simulate this one"
        )


def _closing(actions: Sequence[Action], plan: Plan) -> dict[int, tuple[Batch, ...]]:
    # Last backward of each batch, by microbatch; with replicas the Reduce closes a batch instead.
    last: dict[Batch, int] = {}
    if plan.num_replicas == 1:
        for action in actions:
            if action.kind is ActionKind.BACKWARD:
                for batch in plan.microbatches[action.microbatch].global_batches():
                    last[batch] = action.microbatch
    found: dict[int, tuple[Batch, ...]] = defaultdict(tuple)
    for batch, microbatch in sorted(last.items()):
        found[microbatch] += (batch,)
    return found


def _openings(actions: Sequence[Action]) -> tuple[dict[int, tuple[Batch, ...]], tuple[Batch, ...]]:
    # Steps that stand before each forward (or evaluation), by its microbatch, and those that no forward follows.
    found: dict[int, tuple[Batch, ...]] = defaultdict(tuple)
    waiting: tuple[Batch, ...] = ()
    for action in actions:
        if action.kind is ActionKind.STEP:
            waiting += ((action.adapter, action.global_batch),)
        elif action.kind in _DOWNWARD:
            found[action.microbatch], waiting = waiting, ()
    return found, waiting


def _down(plan: Plan, microbatch: int, steps: tuple[Batch, ...]) -> Message:
    tokens = plan.microbatches[microbatch].num_tokens()
    return Message(direction=Direction.DOWN, microbatch=microbatch, num_tokens=tokens, batches=steps)


def _up(plan: Plan, microbatch: int, closes: tuple[Batch, ...]) -> Message:
    tokens = plan.microbatches[microbatch].num_tokens()
    return Message(direction=Direction.UP, microbatch=microbatch, num_tokens=tokens, batches=closes)


def _ends(message: Message, *, stage: int, num_stages: int) -> tuple[Message | None, Message | None]:
    # A message as seen from a stage: (what comes from the stage before, what goes to the stage after).
    return (message if stage > 0 else None), (message if stage < num_stages - 1 else None)


def _with_posts(legs: Sequence[Leg]) -> Iterator[Leg]:
    posted: set[Message] = set()
    for place, leg in enumerate(legs):
        due = [] if leg.receive is None else [leg.receive]
        if leg.action.kind in _STREAMING:
            due += _ahead(legs[place + 1 :])
        if leg.action.kind is ActionKind.EVALUATE:
            due += _upward(legs[place + 1 :])
        fresh = tuple(message for message in dict.fromkeys(due) if message not in posted)
        posted.update(fresh)
        yield replace(leg, post=fresh)


def _ahead(later: Sequence[Leg]) -> Iterator[Message]:
    # Receives up to and including that of the next forward or backward; the end of the Program counts as one.
    for leg in later:
        if leg.receive is not None:
            yield leg.receive
        if leg.action.kind in _STREAMING:
            return


def _upward(later: Sequence[Leg]) -> Iterator[Message]:
    # What the next two backwards wait for, with the Reduces around them: the stage after this one runs at most so many
    # before its own evaluations, and could not send them while we wait for it to take ours.
    num_backwards = 0
    for leg in later:
        num_backwards += leg.action.kind is ActionKind.BACKWARD
        if num_backwards > 2:
            return
        if leg.receive is not None and leg.receive.direction is Direction.UP:
            yield leg.receive
