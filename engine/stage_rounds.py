"""One kind of stage with adapters, measured round after round, into rows of traces/profile_points.py."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..planner.loads import Loads
from ..planner.plan import Plan
from ..planner.program import ActionKind
from .measure import run_round
from .memory_recorder import Held, MemoryRecorder
from .pool_tokens import PoolTokens
from .profile_conditions import Condition, conditions_plan, round_order
from .recorder import Recorder
from .stage import Stage
from .stage_kinds import Setup, StageKind

Row = Mapping[str, object]
_LOADS = ("tokens", "squares", "targets", "adapters", "dropped")
_COUNTED = 1
"""The round in which the allocator's books are read, which takes the host time: neither it nor the one before it, which
compiles, is among those that are timed."""


class Passes:
    """What the passes of each microbatch took, in ms."""

    def __init__(self, num_microbatches: int) -> None:
        self._ms: dict[str, list[list[float]]] = {
            word: [[] for _ in range(num_microbatches)] for word in ("forward", "backward")
        }

    def add(self, word: str, place: int, ms: float) -> None:
        """A measurement more, of the `place`-th microbatch."""
        self._ms[word][place].append(ms)

    def rows(
        self,
        kind: StageKind,
        conditions: Sequence[Condition],
        plan: Plan,
        *,
        stage: Stage | None = None,
        held: Sequence[tuple[Held, Held]] = (),
    ) -> list[Row]:
        """Two a microbatch; `plan` begins with the conditions in their order. `stage`: what they ran through, if all of
        it."""
        loads = Loads.of(plan.microbatches, jobs=plan.jobs)
        rows: list[Row] = []
        for place, condition in enumerate(conditions):
            load = {name: int(getattr(loads, name)[place]) for name in _LOADS}
            for number, word in enumerate(("forward", "backward")):
                row: dict[str, object] = {
                    "piece": kind.piece,
                    "pass": word,
                    "recompute": kind.recompute,
                    "layers": kind.layers,
                    "condition": condition.number,
                    "replayed": stage is not None and stage.replays(load["tokens"]),
                }
                row |= load
                row |= usual(self._ms[word][place])
                if held:
                    own = held[place][number]
                    row |= {"kept_bytes": own.kept(), "passing_bytes": own.passing()}
                rows.append(row)
        return rows


class StageRounds:
    """Runs rounds of one kind of stage over some conditions, each `again` times, and keeps what they took."""

    def __init__(
        self, setup: Setup, kind: StageKind, stage: Stage, conditions: Sequence[Condition], *, again: int
    ) -> None:
        self.kind = kind
        self._stage = stage
        self._loras, self._device = setup.loras, setup.device
        self._conditions = conditions
        self._again = again
        self._tokens = PoolTokens(stage.model.config.vocab_size)
        # The same orders for all workers.
        self._generator = np.random.default_rng(0)
        self._rounds = 0
        self._passes = Passes(len(self._conditions))
        self._steps_ms: list[float] = []
        self._held: list[tuple[Held, Held]] = []

    def run(self) -> None:
        """Another round; the first compiles kernels, the second counts bytes, and neither's times are kept."""
        # Twice in the first, in which graphs are captured of what comes again.
        again = self._again if self._rounds else min(self._again, 2)
        order = round_order(self._conditions, self._generator, again=again)
        # The first forward finds the GPU at rest and waits for every launch: one of 4,299 tokens took 8.7 to 9.0 ms
        # where it was the first, 6.4 where it was not (two layers, H100, 2026-11-26). So one leads that is not timed.
        led = [order[0], *order]
        plan = conditions_plan([self._conditions[place] for place in led], self._loras, num_stages=3)
        counted = self._rounds == _COUNTED
        # The memory of graphs is reserved once, and nothing of it is taken or freed by a pass.
        stage = replace(self._stage, graphs=None) if counted else self._stage
        make = MemoryRecorder if counted else Recorder
        recorder = make(stage=stage.layout.stage, device=self._device)
        spans = run_round(stage, plan, tokens=self._tokens, recorder=recorder)
        if self._rounds > _COUNTED:
            self._note({kind: [ms for action, ms in spans if action.kind is kind] for kind in ActionKind}, order)
        if isinstance(recorder, MemoryRecorder) and recorder.held:
            # Forward and backward of each microbatch follow each other.
            pairs = list(zip(recorder.held[::2], recorder.held[1::2], strict=False))
            self._held = [pairs[1 + order.index(place)] for place in range(len(self._conditions))]
        self._rounds += 1

    def _note(self, ms: Mapping[ActionKind, Sequence[float]], order: Sequence[int]) -> None:
        forward, backward = ms[ActionKind.FORWARD][1:], ms[ActionKind.BACKWARD][1:]
        for number, place in enumerate(order):
            self._passes.add("forward", place, forward[number])
            self._passes.add("backward", place, backward[number])
        # A step and the end of its batch, which the last backward has and its equal before it has not.
        ends = max(0.0, backward[-1] - backward[-2]) / len(self._loras)
        self._steps_ms.append(float(np.median(ms[ActionKind.STEP])) + ends)

    def rows(self, *, with_step: bool) -> list[Row]:
        """All that was measured; a step too where that is wanted and nothing is computed again."""
        plan = conditions_plan(self._conditions, self._loras, num_stages=3)
        rows = self._passes.rows(self.kind, self._conditions, plan, stage=self._stage, held=self._held)
        if with_step and self.kind.piece == "stage" and self.kind.recompute == "none":
            step = {"piece": "step", "pass": "step", "recompute": "none", "layers": self.kind.layers, "condition": -1}
            rows.append({**step, **dict.fromkeys(_LOADS, 1), "dropped": 0, **usual(self._steps_ms)})
        return rows


def usual(ms: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and number of measurements, as columns."""
    low, middle, high = (float(one) for one in np.quantile(ms, (0.25, 0.5, 0.75)))
    return {"ms": middle, "low_ms": low, "high_ms": high, "rounds": len(ms)}
