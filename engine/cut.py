"""Where a run can be cut: after the backward of a microbatch, with each adapter's state the same on every stage.

By the time stage 0 ends the backward of microbatch m it has taken some optimizer steps. The cut after m holds exactly
those steps on every stage: a later stage, which takes them a little later, has its adapter copied right after the last
of them. Nothing else touches that adapter in between: its next forward comes after the step. Forwards beyond m have no
lasting effect, so a resumed run sends m + 1 and all that follow through an empty pipeline and gets the same bits
(planner/resume.py says what is left).

With replicas the cut lies behind a slot. A replica that had nothing to do in some slots takes steps later than others;
the cut holds every step that stage 0 of any replica has taken, and each batch that the slot made whole is reduced. What
a late replica has reduced beyond that is left out: none of it is its own.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..planner.errors import PlanError
from ..planner.plan import Plan
from ..planner.program import ActionColumns, ActionKind, Program
from ..planner.resume import cut_place
from .itinerary import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """Copy one adapter's state for the cut behind a slot."""

    after: int
    """The slot; with one replica, the microbatch."""
    adapter: int
    num_whole: int
    """Global batches of it whose gradients are whole: what is closed beyond them does not belong to the cut."""
    completes: bool
    """Whether it is this worker's last copy for that cut."""


def copies(
    program: Program, plan: Plan, *, stage: int, replica: int = 0, cuts: Iterable[int]
) -> dict[int, tuple[Copy, ...]]:
    """Which adapters to copy after which of a worker's actions (by place), for cuts behind these slots."""
    columns, num_replicas = program.columns(stage=stage, replica=replica), program.num_replicas
    own = {kind: _places(columns, kind) for kind in (ActionKind.STEP, ActionKind.REDUCE)}
    ended = _with_evaluations(columns)
    leaders = [program.columns(stage=0, replica=number) for number in range(num_replicas)]
    steps = [_by_adapter(_places(leader, ActionKind.STEP)) for leader in leaders]
    ends = _ends(plan)
    due: dict[int, list[Copy]] = defaultdict(list)
    for after in cuts:
        here = max(0, cut_place(columns, slot=after, num_replicas=num_replicas) - 1)
        led = [cut_place(leader, slot=after, num_replicas=num_replicas) for leader in leaders]
        when: dict[int, int] = {}
        for adapter in range(len(plan.jobs)):
            stepped = max(_last_before(found[adapter], cut) for found, cut in zip(steps, led, strict=True))
            whole = bisect_right(ends[adapter], after) - 1
            when[adapter] = max(
                here,
                ended.get(own[ActionKind.STEP].get((adapter, stepped), -1), -1),
                own[ActionKind.REDUCE].get((adapter, whole), -1),
            )
        last = max(when, key=lambda adapter: (when[adapter], adapter))
        for adapter, place in when.items():
            num_whole = bisect_right(ends[adapter], after)
            due[place].append(Copy(after=after, adapter=adapter, num_whole=num_whole, completes=adapter == last))
    return {place: tuple(found) for place, found in due.items()}


def check_can_cut(program: Program) -> None:
    """Raise PlanError for a Program that cannot be cut into a before and an after."""
    for columns in program.workers:
        backwards = columns.microbatch[columns.kind == int(ActionKind.BACKWARD)]
        if np.any(np.diff(backwards) < 0):
            raise PlanError(
                f"schedule '{program.schedule}' runs backwards out of order, so that no cut separates before from "
                "after; leave out --checkpoint-every or choose 1f1b"
            )


def cut_points(num_slots: int, *, every: int, after: int = -1) -> Sequence[int]:
    """Slots behind which to cut: every `every`-th one after `after`, but not behind the last."""
    return range(after + every, num_slots - 1, every)


def _places(columns: ActionColumns, kind: ActionKind) -> dict[Batch, int]:
    rows = np.flatnonzero(columns.kind == int(kind))
    batches = zip(columns.adapter[rows].tolist(), columns.global_batch[rows].tolist(), strict=True)
    return dict(zip(batches, rows.tolist(), strict=True))


def _with_evaluations(columns: ActionColumns) -> dict[int, int]:
    # For the place of each step, that of the last evaluation right behind it and its like; its own where there is none.
    ended: dict[int, int] = {}
    together: list[int] = []
    for place, kind in enumerate(columns.kind.tolist()):
        if kind == int(ActionKind.STEP):
            together.append(place)
            ended[place] = place
        elif kind == int(ActionKind.EVALUATE):
            ended |= dict.fromkeys(together, place)
        else:
            together = []
    return ended


def _by_adapter(places: Mapping[Batch, int]) -> dict[int, list[tuple[int, int]]]:
    # adapter -> (place, global batch) of its steps, in order.
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for (adapter, global_batch), place in places.items():
        found[adapter].append((place, global_batch))
    return found


def _last_before(steps: Sequence[tuple[int, int]], cut: int) -> int:
    # The last step before a place; -1 where there is none.
    count = bisect_left(steps, (cut, -1))
    return steps[count - 1][1] if count else -1


def _ends(plan: Plan) -> list[list[int]]:
    # By adapter, the last slot of each of its batches, in order.
    last = [[-1] * len(job.global_batches) for job in plan.jobs]
    for place, held in enumerate(plan.microbatches):
        for adapter, global_batch in held.global_batches():
            last[adapter][global_batch] = place // plan.num_replicas
    return last
