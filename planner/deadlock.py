"""Whether a Program can run to its end when every send blocks until its receive is posted (rendezvous).

The rules of the engine, at their strictest: a worker posts the receive of a forward or backward, and those of Reduces
on the way to it, when it comes to the forward or backward before (`ahead` = 1). Steps post nothing. It then waits for
the message, computes, and sends; a send lasts until the receiver has posted. What passes here also passes with buffered
sends. Some schedules need receives posted further ahead: interleaved ones, whose stages form a ring, and with replicas
those whose stages differ in what follows a Reduce (wide warm-up, split backward: two ahead).
"""

from collections import deque
from dataclasses import dataclass
from itertools import pairwise

from .errors import PlanError
from .graph import action_text, program_messages
from .program import ActionKind, Program

_BESIDE = (int(ActionKind.STEP), int(ActionKind.REDUCE), int(ActionKind.BACKWARD_WEIGHT))


def require_progress(program: Program, *, ahead: int = 1) -> None:
    """Raise PlanError naming the circle of actions in which the workers wait for each other."""
    state = _Run.of(program, ahead=ahead)
    ready = deque(range(len(program.workers)))
    # By the worker that they wait for. Looking at all in turn, where one microbatch is under way at a time, costs an
    # action as many looks as there are stages.
    waiting: list[list[int]] = [[] for _ in program.workers]
    while ready:
        worker = ready.popleft()
        if state.advance(worker):
            ready.extend(waiting[worker])
            waiting[worker].clear()
        if not state.is_through(worker):
            waiting[state.awaited(worker)].append(worker)
    stuck = [worker for worker in range(len(program.workers)) if not state.is_through(worker)]
    if stuck:
        raise PlanError(
            f"schedule '{program.schedule}' deadlocks: {_circle(state, stuck[0])}; change the order of one of them"
        )


@dataclass(slots=True)
class _Run:
    """How far each worker has come."""

    program: Program
    kind: list[list[int]]
    sender: list[list[int]]
    """Numbered-through action whose message each action waits for, -1 where none."""
    receiver: list[list[int]]
    """Numbered-through action that takes what each action sends, -1 where none."""
    offsets: list[int]
    owner: list[int]
    post_at: list[list[int]]
    """Place at which the receive of each action is posted."""
    place: list[int]
    sending: list[bool]
    """Whether a worker has computed what stands at its place and is sending it."""
    num_reduced: list[int]

    @classmethod
    def of(cls, program: Program, *, ahead: int) -> "_Run":
        offsets, owner, sender, receiver = program_messages(program)
        kinds = [columns.kind.tolist() for columns in program.workers]
        bounds = list(pairwise(offsets))
        return cls(
            program=program,
            kind=kinds,
            sender=[sender[first:last] for first, last in bounds],
            receiver=[receiver[first:last] for first, last in bounds],
            offsets=offsets,
            owner=owner,
            post_at=[_post_places(kind, ahead) for kind in kinds],
            place=[0] * len(kinds),
            sending=[False] * len(kinds),
            num_reduced=[0] * len(kinds),
        )

    def advance(self, worker: int) -> bool:
        """Run a worker until it waits; whether it got anywhere."""
        moved = False
        while not self.is_through(worker) and self.awaited(worker) < 0:
            place = self.place[worker]
            if self.receiver[worker][place] >= 0 and not self.sending[worker]:
                self.sending[worker] = True
            else:
                self.num_reduced[worker] += self.kind[worker][place] == int(ActionKind.REDUCE)
                self.sending[worker] = False
                self.place[worker] = place + 1
            moved = True
        return moved

    def is_through(self, worker: int) -> bool:
        """Whether it has done all its actions."""
        return self.place[worker] == len(self.kind[worker])

    def awaited(self, worker: int) -> int:
        """The worker that this one waits for now, -1 if it can go on."""
        place = self.place[worker]
        if self.sending[worker]:
            return self._unless_posted(self.receiver[worker][place])
        if self.kind[worker][place] == int(ActionKind.REDUCE):
            missing = self._missing_at_reduce(worker)
            if missing >= 0:
                return missing
        sender = self.sender[worker][place]
        if sender < 0:
            return -1
        other = self.owner[sender]
        there = sender - self.offsets[other]
        sent = self.place[other] > there or (self.place[other] == there and self.sending[other])
        return -1 if sent else other

    def _unless_posted(self, receiver: int) -> int:
        other = self.owner[receiver]
        return -1 if self.place[other] >= self.post_at[other][receiver - self.offsets[other]] else other

    def _missing_at_reduce(self, worker: int) -> int:
        stages = self.program.num_stages
        for other in range(worker % stages, len(self.kind), stages):
            place = self.place[other]
            here = place < len(self.kind[other]) and self.kind[other][place] == int(ActionKind.REDUCE)
            if other != worker and self.num_reduced[other] + here <= self.num_reduced[worker]:
                return other
        return -1


def _post_places(kind: list[int], ahead: int) -> list[int]:
    # The receive of a forward or backward is posted on coming to the `ahead`-th forward or backward before it.
    places: list[int] = []
    recent: deque[int] = deque([0] * ahead, maxlen=ahead)
    for place, value in enumerate(kind):
        places.append(recent[0])
        if value not in _BESIDE:
            recent.append(place)
    return places


def _circle(state: _Run, worker: int) -> str:
    seen: list[int] = []
    while worker not in seen:
        seen.append(worker)
        worker = state.awaited(worker)
    words = []
    for member in seen[seen.index(worker) :]:
        doing = "send" if state.sending[member] else "start"
        words.append(f"{action_text(state.program, member, state.place[member])} waits to {doing}")
    return " -> ".join([*words, words[0]])
