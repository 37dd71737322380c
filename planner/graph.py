"""A Program as a graph: for each action, which action of another worker it waits for.

Actions are numbered through, worker after worker. What an action waits for, besides the one before it on its worker:
- a forward: the forward of its microbatch one model part earlier; a backward: the backward one part later;
- a Step on any stage but the first: the message of the forward it stands before, which brings the gradient's norm;
- a Reduce: the other replicas, at the same Reduce, and the norm that the next stage sends up after its own;
- a Step on stage 0 where a split backward leaves its message before the norm is known: the last gradient of its batch
  on every stage; the first of the Steps that end the Program: stage 0, which sends one last message down.
A part is one chunk of one stage; parts are numbered chunk * num_stages + stage.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled
from .errors import PlanError
from .further_waits import further_waits, reduce_chain
from .program import Action, ActionKind, Program

Index = NDArray[np.int64]
Column = NDArray[np.int32]
_FORWARDS = (int(ActionKind.FORWARD), int(ActionKind.EVALUATE))
_BACKWARDS = (int(ActionKind.BACKWARD), int(ActionKind.BACKWARD_INPUT))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProgramGraph:
    """Dependencies of all actions of a Program, in arrays over the numbered-through actions."""

    program: Program
    offsets: Index
    """First action of each worker; one entry more than workers."""
    kind: Column
    microbatch: Column
    part: Column
    """chunk * num_stages + stage."""
    worker: Column
    sender: Column
    """The action whose message it waits for, or -1."""
    has_extras: NDArray[np.bool_]
    """Whether it has further waits: one byte to look at instead of eight, for nearly all actions have none."""
    extra_first: Index
    """Where an action's further waits begin in `extra_action`; one entry more than actions."""
    extra_action: Index
    extra_hops: Index
    """Stages that the short message of a further wait passes through."""
    run_first: Column
    run_end: Column
    run_worker: Column
    """Stretches of actions of one worker which, one stretch after the other, run each action after all it waits for."""

    def num_actions(self) -> int:
        """Actions of all workers."""
        return len(self.kind)

    def order(self) -> Index:
        """All actions, each after everything it waits for."""
        lengths = self.run_end - self.run_first
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        order: Index = np.repeat(self.run_first, lengths).astype(np.int64) + within
        return order

    def stage(self) -> Column:
        """Stage of each action."""
        return self.worker % np.int32(self.program.num_stages)


def program_graph(program: Program) -> ProgramGraph:
    """The graph of a Program. Raises PlanError if an action waits for one that is missing or for itself in a circle."""
    offsets, kind, microbatch, part, worker = _numbered(program)
    sender = _senders(program, kind=kind, microbatch=microbatch, part=part, worker=worker)
    extras = sorted(further_waits(program, offsets=offsets))
    extra_first = np.searchsorted([action for action, _, _ in extras], np.arange(len(kind) + 1)).astype(np.int64)
    extra_action = np.array([awaited for _, awaited, _ in extras], dtype=np.int64)
    run_first, run_end = np.empty(len(kind), dtype=np.int32), np.empty(len(kind), dtype=np.int32)
    num_runs = _walk()(offsets, sender, extra_first, extra_action, run_first, run_end)
    run_first, run_end = run_first[:num_runs].copy(), run_end[:num_runs].copy()
    num_ordered = int((run_end - run_first).sum())
    if num_ordered < len(kind):
        raise PlanError(
            f"schedule '{program.schedule}' deadlocks: {len(kind) - num_ordered} of {len(kind)} actions can never "
            "start; check_program names the circle"
        )
    return ProgramGraph(
        program=program,
        offsets=offsets,
        kind=kind,
        microbatch=microbatch,
        part=part,
        worker=worker,
        sender=sender.astype(np.int32),
        has_extras=np.diff(extra_first) > 0,
        extra_first=extra_first,
        extra_action=extra_action,
        extra_hops=np.array([hops for _, _, hops in extras], dtype=np.int64),
        run_first=run_first,
        run_end=run_end,
        run_worker=worker[run_first],
    )


def program_messages(program: Program) -> tuple[list[int], list[int], list[int], list[int]]:
    """(first action of each worker and the end, worker, sender, receiver) of all actions; -1 where there is none.

    The sender of an action is the one whose message it waits for; its receiver is the forward, backward or Reduce that
    takes what it sends; a worker sends nothing to itself. Raises PlanError where one of them lacks its feeder.
    """
    offsets, kind, microbatch, part, worker = _numbered(program)
    sender = _senders(program, kind=kind, microbatch=microbatch, part=part, worker=worker)
    receiver = np.full(len(kind), -1, dtype=np.int64)
    for reduce, awaited in reduce_chain(program, offsets=offsets):
        sender[reduce] = awaited
    taking = np.flatnonzero((kind != int(ActionKind.STEP)) & (sender >= 0) & (worker != worker[sender]))
    receiver[sender[taking]] = taking
    return offsets.tolist(), worker.tolist(), sender.tolist(), receiver.tolist()


def _numbered(program: Program) -> tuple[Index, Column, Column, Column, Column]:
    # First action of each worker; kind, microbatch, model part and worker of every action.
    workers = program.workers
    offsets = np.concatenate([[0], np.cumsum([len(columns) for columns in workers])]).astype(np.int64)
    worker = np.repeat(np.arange(len(workers), dtype=np.int32), np.diff(offsets))
    chunk = np.concatenate([columns.chunk for columns in workers])
    part = (chunk * program.num_stages + worker % program.num_stages).astype(np.int32)
    kind = np.concatenate([columns.kind for columns in workers])
    return offsets, kind, np.concatenate([columns.microbatch for columns in workers]), part, worker


def _senders(
    program: Program,
    *,
    kind: Column,
    microbatch: Column,
    part: Column,
    worker: Column,
) -> Index:
    num_parts = program.num_stages * program.num_chunks
    forwards = np.flatnonzero(np.isin(kind, _FORWARDS))
    backwards = np.flatnonzero(np.isin(kind, _BACKWARDS))
    width = int(microbatch.max(initial=-1)) + 1
    forward_at = np.full((num_parts, width), -1, dtype=np.int64)
    forward_at[part[forwards], microbatch[forwards]] = forwards
    backward_at = np.full((num_parts, width), -1, dtype=np.int64)
    backward_at[part[backwards], microbatch[backwards]] = backwards
    sender = np.full(len(kind), -1, dtype=np.int64)
    received = forwards[part[forwards] > 0]
    sender[received] = forward_at[part[received] - 1, microbatch[received]]
    _require(sender, received, program, what="forward")
    received = backwards[part[backwards] < num_parts - 1]
    sender[received] = backward_at[part[received] + 1, microbatch[received]]
    _require(sender, received, program, what="backward")
    # A Step waits for what the forward right behind it, and behind its fellow Steps, waits for.
    steps = np.flatnonzero(kind == int(ActionKind.STEP))
    others = np.append(np.flatnonzero(kind != int(ActionKind.STEP)), len(kind))
    following = others[np.searchsorted(others, steps)]
    inside = following < len(kind)
    steps, following = steps[inside], following[inside]
    carried = (worker[steps] == worker[following]) & np.isin(kind[following], _FORWARDS)
    carried &= worker[steps] % program.num_stages > 0
    sender[steps[carried]] = sender[following[carried]]
    return sender


def _require(sender: Index, received: Index, program: Program, *, what: str) -> None:
    missing = received[sender[received] < 0]
    if len(missing):
        worker, action = locate(program, int(missing[0]))
        raise PlanError(
            f"schedule '{program.schedule}': stage {worker % program.num_stages} runs {action}, but no stage runs the "
            f"{what} that feeds it; add it to the neighbouring stage"
        )


def locate(program: Program, action: int) -> tuple[int, str]:
    """Worker and text of an action given by its number."""
    for worker, columns in enumerate(program.workers):
        if action < len(columns):
            return worker, action_text(program, worker, action)
        action -= len(columns)
    raise PlanError(f"action {action} is beyond the program's {program.num_actions()} actions")


def action_text(program: Program, worker: int, place: int) -> str:
    """The word, such as 1F3, of the action at a place of a worker."""
    columns = program.workers[worker]
    action = Action(
        kind=ActionKind(int(columns.kind[place])),
        microbatch=int(columns.microbatch[place]),
        chunk=int(columns.chunk[place]),
        adapter=int(columns.adapter[place]),
        global_batch=int(columns.global_batch[place]),
    )
    return action.text(stage=worker % program.num_stages, num_stages=program.num_stages)


def _find_runs(offsets: Any, sender: Any, extra_first: Any, extra_action: Any, run_first: Any, run_end: Any) -> int:
    # Walks every worker as far as it gets, in turn, until none moves. Runs as it is and compiled.
    num_workers = len(offsets) - 1
    reached = offsets.copy()
    done = [False for _ in range(offsets[num_workers])]
    num_runs = 0
    moved = True
    while moved:
        moved = False
        for worker in range(num_workers):
            action = reached[worker]
            while action < offsets[worker + 1]:
                ready = sender[action] < 0 or done[sender[action]]
                for place in range(extra_first[action], extra_first[action + 1]):
                    ready = ready and done[extra_action[place]]
                if not ready:
                    break
                done[action] = True
                action += 1
            if action > reached[worker]:
                run_first[num_runs] = reached[worker]
                run_end[num_runs] = action
                num_runs += 1
                reached[worker] = action
                moved = True
    return num_runs


@cache
def _walk() -> Any:
    return compiled(_find_runs)
