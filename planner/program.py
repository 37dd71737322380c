"""The Program: per worker, the ordered actions that the simulator replays and the engine executes.

Actions are stored in columns, since a million of them is normal; `actions()` gives them as objects.
The text form follows torch's custom schedules, `0F0 0F1 0B0` (stage, action, microbatch), one line a worker; Reduce and
Step, which torch has not, are written `0R2.5` and `0S2.5` (stage, action, adapter, global batch).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ..traces.counted import counted
from .errors import PlanError


class ActionKind(IntEnum):
    """What a worker does next. The letter of the text form is `LETTERS[kind]`."""

    FORWARD = 0
    BACKWARD = 1
    """Gradients of inputs and weights together."""
    BACKWARD_INPUT = 2
    BACKWARD_WEIGHT = 3
    REDUCE = 4
    """Sum one adapter's gradients of one global batch over the replicas."""
    STEP = 5
    """One adapter's optimizer step for one global batch."""
    EVALUATE = 6
    """Forward without backward."""


LETTERS = "FBIWRSE"
_ON_ADAPTER = (ActionKind.REDUCE, ActionKind.STEP)
_TEXT = re.compile(r"(\d+)(?:([FBIWE])(\d+)|([RS])(\d+)\.(\d+))")


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One thing a worker does: on a microbatch, or, for Reduce and Step, on an adapter's global batch."""

    kind: ActionKind
    microbatch: int = -1
    chunk: int = 0
    """Which of the worker's model chunks; above 0 only in interleaved schedules."""
    adapter: int = -1
    global_batch: int = -1

    def text(self, *, stage: int, num_stages: int) -> str:
        """The action as a word, `0F3` or `0S2.5`; chunks count as further stages, as in torch."""
        place = self.chunk * num_stages + stage
        if self.kind in _ON_ADAPTER:
            return f"{place}{LETTERS[self.kind]}{self.adapter}.{self.global_batch}"
        return f"{place}{LETTERS[self.kind]}{self.microbatch}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ActionColumns:
    """The actions of one worker in order; int32 arrays of one length, -1 where a field does not apply."""

    kind: NDArray[np.int32]
    microbatch: NDArray[np.int32]
    chunk: NDArray[np.int32]
    adapter: NDArray[np.int32]
    global_batch: NDArray[np.int32]

    @classmethod
    def of(cls, actions: Iterable[Action]) -> "ActionColumns":
        """Columns of a sequence of actions."""
        rows = [(a.kind, a.microbatch, a.chunk, a.adapter, a.global_batch) for a in actions]
        table = np.array(rows, dtype=np.int32).reshape(-1, 5)
        kind, microbatch, chunk, adapter, global_batch = (np.ascontiguousarray(column) for column in table.T)
        return cls(kind=kind, microbatch=microbatch, chunk=chunk, adapter=adapter, global_batch=global_batch)

    def __len__(self) -> int:
        return len(self.kind)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ActionColumns):
            return NotImplemented
        names = ("kind", "microbatch", "chunk", "adapter", "global_batch")
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)

    def __iter__(self) -> Iterator[Action]:
        columns = (self.kind, self.microbatch, self.chunk, self.adapter, self.global_batch)
        for kind, batch, chunk, adapter, global_batch in zip(*(column.tolist() for column in columns), strict=True):
            yield Action(
                kind=ActionKind(kind), microbatch=batch, chunk=chunk, adapter=adapter, global_batch=global_batch
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """The ordered actions of every worker. Worker of (replica, stage) is `workers[replica * num_stages + stage]`."""

    schedule: str
    num_stages: int
    num_replicas: int = 1
    num_chunks: int = 1
    workers: tuple[ActionColumns, ...]

    def columns(self, *, stage: int, replica: int = 0) -> ActionColumns:
        """The actions of one worker, in columns."""
        return self.workers[replica * self.num_stages + stage]

    def actions(self, *, stage: int, replica: int = 0) -> Iterator[Action]:
        """The actions of one worker, in order."""
        return iter(self.columns(stage=stage, replica=replica))

    def num_actions(self) -> int:
        """Actions of all workers together."""
        return sum(len(columns) for columns in self.workers)

    def to_text(self) -> str:
        """One line a worker, replicas one after another."""
        lines = [
            " ".join(action.text(stage=worker % self.num_stages, num_stages=self.num_stages) for action in columns)
            for worker, columns in enumerate(self.workers)
        ]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_text(cls, text: str, *, num_stages: int, num_replicas: int = 1, schedule: str = "custom") -> "Program":
        """Read back what `to_text` wrote. Raises PlanError naming line and word."""
        lines = text.splitlines()
        if len(lines) != num_stages * num_replicas:
            raise PlanError(
                f"program text has {counted(len(lines), 'line')}; it needs one for each of "
                f"{counted(num_replicas, 'replica')} x {counted(num_stages, 'stage')}"
            )
        workers = tuple(
            ActionColumns.of(_parse_line(line, number=number, num_stages=num_stages))
            for number, line in enumerate(lines)
        )
        num_chunks = 1 + max((int(columns.chunk.max()) for columns in workers if len(columns)), default=0)
        return cls(
            schedule=schedule,
            num_stages=num_stages,
            num_replicas=num_replicas,
            num_chunks=num_chunks,
            workers=workers,
        )


def _parse_line(line: str, *, number: int, num_stages: int) -> Iterator[Action]:
    for word in line.split():
        found = _TEXT.fullmatch(word)
        if found is None:
            raise PlanError(f"program line {number + 1}: '{word}' is no action; write e.g. 0F3, 0B3 or 0S2.5")
        place, on_microbatch, microbatch, on_adapter, adapter, global_batch = found.groups()
        chunk, stage = divmod(int(place), num_stages)
        if stage != number % num_stages:
            raise PlanError(f"program line {number + 1}: '{word}' is an action of stage {stage}; move it to its line")
        kind = ActionKind(LETTERS.index(on_microbatch or on_adapter))
        if on_microbatch:
            yield Action(kind=kind, microbatch=int(microbatch), chunk=chunk)
        else:
            yield Action(kind=kind, adapter=int(adapter), global_batch=int(global_batch), chunk=chunk)
