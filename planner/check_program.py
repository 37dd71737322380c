"""Offline check of a Program against its Plan: the rules interpreters rely on, read independently of the emitters."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from ..traces.counted import counted
from .deadlock import require_progress
from .errors import PlanError
from .plan import Plan
from .program import Action, ActionKind, Program

_Key = tuple[int, int]
_GRADIENTS = (ActionKind.BACKWARD, ActionKind.BACKWARD_WEIGHT)


def check_program(program: Program, plan: Plan, *, ahead: int | None = None) -> None:
    """Raise PlanError, naming stage and action, at the first rule that a Program breaks.

    Per worker: each microbatch of its replica goes once forward and once backward through each chunk, in that order; a
    forward of (adapter, k) follows the Step of (adapter, k - 1); each batch has exactly one Step, after all its
    gradients, and, with replicas, one Reduce between the two, in the same order on every replica.
    Between workers: messages of each edge leave in the order they are received, and no circle of waits arises even when
    every send blocks until its receive is posted (deadlock.py), `ahead` forwards or backwards before its own; default:
    1, and num_stages + 1 where stages hold several chunks (the least that sufficed for 2 to 5 chunks, up to 8 stages
    and 39 microbatches).
    """
    for name in ("num_stages", "num_replicas"):
        if getattr(program, name) != getattr(plan, name):
            raise PlanError(
                f"the program has {name}={getattr(program, name)}, the plan {getattr(plan, name)}; build it anew"
            )
    if len(program.workers) != program.num_stages * program.num_replicas:
        raise PlanError(
            f"the program has {counted(len(program.workers), 'worker')}; it needs one for each of "
            f"{counted(program.num_replicas, 'replica')} x {counted(program.num_stages, 'stage')}"
        )
    for worker in range(len(program.workers)):
        _Worker(program, plan, worker).check()
    _check_reduces(program)
    _check_message_order(program)
    require_progress(program, ahead=ahead or (program.num_stages + 1 if program.num_chunks > 1 else 1))


class _Worker:
    """Walks one worker's actions and keeps what has happened so far."""

    def __init__(self, program: Program, plan: Plan, worker: int) -> None:
        self._program = program
        self._plan = plan
        self._worker = worker
        self._replica, self._stage = divmod(worker, program.num_stages)
        self._expected = dict(plan.replica_microbatches(self._replica))
        self._batches = dict.fromkeys(
            batch for microbatch in plan.microbatches for batch in microbatch.global_batches()
        )
        self._done: Counter[tuple[ActionKind, int, int]] = Counter()
        self._missing = self._gradients_due()
        self._stepped: set[_Key] = set()
        self._reduced: set[_Key] = set()

    def check(self) -> None:
        for action in self._program.actions(stage=self._stage, replica=self._replica):
            match action.kind:
                case ActionKind.STEP:
                    self._step(action)
                case ActionKind.REDUCE:
                    self._reduce(action)
                case ActionKind.EVALUATE:
                    self._known(action)
                case _:
                    self._pass(action)
        self._finish()

    def _gradients_due(self) -> Counter[_Key]:
        due: Counter[_Key] = Counter()
        for microbatch in self._expected.values():
            for batch in microbatch.global_batches():
                due[batch] += self._program.num_chunks
        return due

    def _fail(self, action: Action, why: str) -> PlanError:
        word = action.text(stage=self._stage, num_stages=self._program.num_stages)
        place = (
            f"replica {self._replica}, stage {self._stage}"
            if self._program.num_replicas > 1
            else f"stage {self._stage}"
        )
        return PlanError(f"{place}: {word} {why}")

    def _known(self, action: Action) -> None:
        if action.microbatch not in self._expected:
            raise self._fail(action, "is no microbatch of this replica's plan; remove it")
        if not 0 <= action.chunk < self._program.num_chunks:
            raise self._fail(action, f"names a chunk beyond the program's {self._program.num_chunks}")

    def _pass(self, action: Action) -> None:
        self._known(action)
        key = (action.microbatch, action.chunk)
        if self._done[(action.kind, *key)]:
            raise self._fail(action, "stands twice; keep one")
        needed = {
            ActionKind.BACKWARD: ActionKind.FORWARD,
            ActionKind.BACKWARD_INPUT: ActionKind.FORWARD,
            ActionKind.BACKWARD_WEIGHT: ActionKind.BACKWARD_INPUT,
        }.get(action.kind)
        if needed is not None and not self._done[(needed, *key)]:
            raise self._fail(action, f"stands before its {needed.name.lower()}; put it after")
        whole, part = ActionKind.BACKWARD, ActionKind.BACKWARD_INPUT
        if action.kind in (whole, part) and self._done[(part if action.kind == whole else whole, *key)]:
            raise self._fail(action, "has both a whole and a split backward; keep one")
        self._done[(action.kind, *key)] += 1
        batches = self._expected[action.microbatch].global_batches()
        if action.kind == ActionKind.FORWARD:
            self._forward_reads(action, batches)
        if action.kind in _GRADIENTS:
            self._missing.subtract(batches)

    def _forward_reads(self, action: Action, batches: tuple[_Key, ...]) -> None:
        for adapter, number in batches:
            before = (adapter, number - 1)
            if before in self._batches and before not in self._stepped:
                raise self._fail(
                    action, f"reads adapter {adapter} after its global batch {number - 1}, whose Step comes later"
                )

    def _step(self, action: Action) -> None:
        batch = (action.adapter, action.global_batch)
        self._batch_is_due(action, batch, done=self._stepped)
        if self._program.num_replicas > 1 and batch not in self._reduced:
            raise self._fail(action, "stands before its Reduce; put it after")
        before = (action.adapter, action.global_batch - 1)
        if before in self._batches and before not in self._stepped:
            raise self._fail(action, "stands before the adapter's Step before it; put them in order")
        self._stepped.add(batch)

    def _reduce(self, action: Action) -> None:
        batch = (action.adapter, action.global_batch)
        self._batch_is_due(action, batch, done=self._reduced)
        self._reduced.add(batch)

    def _batch_is_due(self, action: Action, batch: _Key, *, done: set[_Key]) -> None:
        if batch not in self._batches:
            raise self._fail(action, "is a batch that the plan has not; remove it")
        if batch in done:
            raise self._fail(action, "stands twice; keep one")
        if self._missing[batch]:
            raise self._fail(action, f"comes before {self._missing[batch]} of its backwards; put it after them")

    def _finish(self) -> None:
        backward = (ActionKind.BACKWARD, ActionKind.BACKWARD_WEIGHT)
        for index in self._expected:
            for chunk in range(self._program.num_chunks):
                evaluated = self._done[(ActionKind.EVALUATE, index, chunk)]
                if not evaluated and not any(self._done[(kind, index, chunk)] for kind in backward):
                    action = Action(kind=ActionKind.BACKWARD, microbatch=index, chunk=chunk)
                    raise self._fail(action, "is missing; every microbatch goes forward and backward on every stage")
        for adapter, number in self._batches:
            if (adapter, number) not in self._stepped:
                action = Action(kind=ActionKind.STEP, adapter=adapter, global_batch=number)
                raise self._fail(action, "is missing; every batch has one Step on every stage")


def _check_reduces(program: Program) -> None:
    for stage in range(program.num_stages):
        orders = [
            [
                (action.adapter, action.global_batch)
                for action in program.actions(stage=stage, replica=replica)
                if action.kind == ActionKind.REDUCE
            ]
            for replica in range(program.num_replicas)
        ]
        for replica, order in enumerate(orders):
            if order != orders[0]:
                raise PlanError(
                    f"stage {stage}: replica {replica} reduces {_first_difference(orders[0], order)} where replica 0 "
                    "reduces another batch; all replicas must reduce in one order"
                )


def _check_message_order(program: Program) -> None:
    for replica in range(program.num_replicas):
        parts = _passes_by_part(program, replica)
        for lower, upper in pairwise(range(program.num_stages * program.num_chunks)):
            for kinds, sender, receiver in (("FE", lower, upper), ("BI", upper, lower)):
                if parts[sender][kinds] != parts[receiver][kinds]:
                    place = _first_difference(parts[sender][kinds], parts[receiver][kinds])
                    raise PlanError(
                        f"model part {sender} sends microbatch {place} to part {receiver}, which expects another one; "
                        f"both must run {'forwards' if kinds == 'FE' else 'backwards'} in one order"
                    )
        _check_shared_edges(program, replica)


def _passes_by_part(program: Program, replica: int) -> list[dict[str, list[int]]]:
    parts: list[dict[str, list[int]]] = [{"FE": [], "BI": []} for _ in range(program.num_stages * program.num_chunks)]
    for stage in range(program.num_stages):
        for action in program.actions(stage=stage, replica=replica):
            direction = _DIRECTION.get(action.kind)
            if direction:
                parts[action.chunk * program.num_stages + stage][direction].append(action.microbatch)
    return parts


_DIRECTION = {
    ActionKind.FORWARD: "FE",
    ActionKind.EVALUATE: "FE",
    ActionKind.BACKWARD: "BI",
    ActionKind.BACKWARD_INPUT: "BI",
}


def _check_shared_edges(program: Program, replica: int) -> None:
    # With chunks, one pair of workers carries messages of several parts; their joint order must agree too.
    if program.num_chunks == 1 or program.num_stages == 1:
        return
    stages, num_parts = program.num_stages, program.num_stages * program.num_chunks
    sent: dict[tuple[str, int, int], list[_Key]] = {}
    received: dict[tuple[str, int, int], list[_Key]] = {}
    for stage in range(stages):
        for action in program.actions(stage=stage, replica=replica):
            direction = _DIRECTION.get(action.kind)
            if direction is None:
                continue
            ahead = 1 if direction == "FE" else -1
            part = action.chunk * stages + stage
            if 0 <= part + ahead < num_parts:
                edge = (direction, stage, (part + ahead) % stages)
                sent.setdefault(edge, []).append((part + ahead, action.microbatch))
            if 0 <= part - ahead < num_parts:
                edge = (direction, (part - ahead) % stages, stage)
                received.setdefault(edge, []).append((part, action.microbatch))
    for edge, order in sent.items():
        if order != received[edge]:
            raise PlanError(
                f"stage {edge[1]} sends to stage {edge[2]} for (model part, microbatch) "
                f"{_first_difference(order, received[edge])} where another one is expected; order both alike"
            )


def _first_difference(left: Sequence[object], right: Sequence[object]) -> object:
    for ours, theirs in zip(left, right, strict=False):
        if ours != theirs:
            return ours
    longer = left if len(left) > len(right) else right
    return longer[min(len(left), len(right))] if len(left) != len(right) else "none"
