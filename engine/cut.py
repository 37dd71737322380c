"""Where a run can be cut: after the backward of a microbatch, with each adapter's state the same on every stage.

By the time stage 0 ends the backward of microbatch m it has taken some optimizer steps. The cut after m holds exactly
those steps on every stage: a later stage, which takes them a little later, has its adapter copied right after the last
of them. Nothing else touches that adapter in between: its next forward comes after the step. Forwards beyond m have no
lasting effect, so a resumed run sends m + 1 and all that follow through an empty pipeline and gets the same bits
(planner/resume.py says what is left).
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..planner.errors import PlanError
from ..planner.program import Action, ActionKind, Program
from .itinerary import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """Copy one adapter's state for the cut after a microbatch."""

    after: int
    """The microbatch."""
    adapter: int
    completes: bool
    """Whether it is this stage's last copy for that cut."""


def copies(program: Program, *, stage: int, num_adapters: int, cuts: Iterable[int]) -> dict[int, tuple[Copy, ...]]:
    """Which adapters to copy after which of a stage's actions (by place), for cuts after these microbatches."""
    actions = tuple(program.actions(stage=stage))
    places = {_key(action): place for place, action in enumerate(actions)}
    due: dict[int, list[Copy]] = defaultdict(list)
    for after in cuts:
        backward = places[ActionKind.BACKWARD, after, -1]
        when = dict.fromkeys(range(num_adapters), backward)
        for adapter, global_batch in _stepped(program, after=after):
            step = places.get((ActionKind.STEP, adapter, global_batch), -1)
            when[adapter] = max(when[adapter], step)
        last = max(when, key=lambda adapter: (when[adapter], adapter))
        for adapter, place in when.items():
            due[place].append(Copy(after=after, adapter=adapter, completes=adapter == last))
    return {place: tuple(found) for place, found in due.items()}


def check_can_cut(program: Program) -> None:
    """Raise PlanError for a Program that cannot be cut into a before and an after."""
    if program.num_replicas > 1:
        raise PlanError(
            f"checkpoints of {program.num_replicas} replicas are not written yet; leave out --checkpoint-every"
        )
    for stage in range(program.num_stages):
        columns = program.columns(stage=stage)
        backwards = columns.microbatch[columns.kind == int(ActionKind.BACKWARD)]
        if np.any(np.diff(backwards) < 0):
            raise PlanError(
                f"schedule '{program.schedule}' runs backwards out of order, so that no cut separates before from "
                "after; leave out --checkpoint-every or choose 1f1b"
            )


def _stepped(program: Program, *, after: int) -> frozenset[Batch]:
    # Steps that stage 0 takes before the backward of this microbatch.
    found = set()
    for action in program.actions(stage=0):
        if action.kind is ActionKind.STEP:
            found.add((action.adapter, action.global_batch))
        elif action.kind is ActionKind.BACKWARD and action.microbatch == after:
            return frozenset(found)
    raise PlanError(f"the Program has no backward of microbatch {after}; the checkpoint is of another plan")


def _key(action: Action) -> tuple[ActionKind, int, int]:
    if action.kind is ActionKind.STEP:
        return action.kind, action.adapter, action.global_batch
    return action.kind, action.microbatch, -1


def cut_points(num_microbatches: int, *, every: int, after: int = -1) -> Sequence[int]:
    """Microbatches behind which to cut: every `every`-th one after `after`, but not behind the last."""
    return range(after + every, num_microbatches - 1, every)
