"""Prediction against reality: two timelines of one plan, side by side."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..planner.plan import Plan
from ..traces.counted import counted
from ..traces.errors import TraceError
from ..traces.timeline import Timeline
from .actions import EVALUATION, NAMES, letters
from .metrics import Summary, summarize
from .units import ms_text


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionComparison:
    """All actions of one kind on one stage (over all replicas)."""

    stage: int
    action: str
    """Word of analysis.actions.NAMES: forward, backward, ..."""
    num_simulated: int
    num_measured: int
    simulated_ms: float | None
    """Mean duration; None where there is none."""
    measured_ms: float | None

    def error(self) -> float | None:
        """Simulated over measured, minus 1."""
        if self.simulated_ms is None or not self.measured_ms:
            return None
        return self.simulated_ms / self.measured_ms - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How well a simulated timeline foretold a measured one."""

    simulated: Summary
    measured: Summary
    actions: tuple[ActionComparison, ...]
    first_difference: str | None
    """Where the executed order, evaluations apart, first leaves the simulated one; None where it never does."""
    num_evaluations: int = 0
    """Microbatches that were executed only to measure a validation loss: none of them is simulated."""
    evaluations_ms: float = 0.0
    """Time in them on the worker that had most."""
    num_unmeasured: int = 0
    """Microbatches that were simulated and are not in the measured timeline: those before a resume."""

    def notes(self) -> tuple[str, ...]:
        """What keeps the two from being compared as wholes."""
        return tuple(filter(None, (self._unmeasured_note(), self._evaluations_note())))

    def _unmeasured_note(self) -> str:
        if not self.num_unmeasured:
            return ""
        return (
            f"not executed here: {counted(self.num_unmeasured, 'simulated microbatch')}; of a run that was resumed, "
            "the timeline is that of its last part; compare the actions, not the wholes"
        )

    def _evaluations_note(self) -> str:
        if not self.num_evaluations:
            return ""
        return (
            f"evaluations executed: {counted(self.num_evaluations, 'microbatch')}, "
            f"{ms_text(self.evaluations_ms)} on the "
            "stage that had most of them; the simulation has none, and its makespan lacks their time"
        )

    def same_order(self) -> bool:
        """Whether every worker ran the same actions in the same order, span for span, evaluations apart."""
        return self.first_difference is None

    def makespan_error(self) -> float | None:
        """Simulated over measured makespan, minus 1: positive where reality was faster than foretold."""
        if not self.measured.makespan_ms:
            return None
        return self.simulated.makespan_ms / self.measured.makespan_ms - 1.0

    def bubble_ratio_difference(self) -> float:
        """Simulated minus measured bubble ratio."""
        return self.simulated.bubble_ratio - self.measured.bubble_ratio

    def peak_memory_error(self) -> float | None:
        """Simulated over measured peak memory of the worst stage, minus 1; None where either was not tracked."""
        ours, theirs = self.simulated.peak_memory_bytes, self.measured.peak_memory_bytes
        return None if ours is None or not theirs else ours / theirs - 1.0

    def to_json(self) -> dict[str, object]:
        """Plain values, ready for json.dumps."""
        return {
            "makespan_error": self.makespan_error(),
            "peak_memory_error": self.peak_memory_error(),
            "bubble_ratio_difference": self.bubble_ratio_difference(),
            "same_order": self.same_order(),
            "first_difference": self.first_difference,
            "num_evaluations": self.num_evaluations,
            "evaluations_ms": self.evaluations_ms,
            "num_unmeasured": self.num_unmeasured,
            "actions": [
                {name: getattr(action, name) for name in action.__dataclass_fields__} | {"error": action.error()}
                for action in self.actions
            ],
            "simulated": self.simulated.to_json(),
            "measured": self.measured.to_json(),
        }


def compare(
    simulated: Timeline,
    *,
    measured: Timeline,
    plan: Plan | None = None,
    last_steps: Mapping[str, int] | None = None,
) -> Comparison:
    """Compare two timelines of one plan; `last_steps` as `summarize` takes them.

    Raises TraceError where they cannot be of one plan.
    """
    for name in ("num_stages", "num_replicas"):
        ours, theirs = getattr(simulated, name), getattr(measured, name)
        if ours != theirs:
            raise TraceError(
                f"the simulated timeline has {name}={ours}, the measured one {theirs}; compare timelines of one plan"
            )
        if plan is not None and getattr(plan, name) != ours:
            raise TraceError(f"the plan has {name}={getattr(plan, name)}, its timelines {ours}; give their own plan")
    evaluations = _evaluations(measured)
    return Comparison(
        simulated=summarize(simulated, plan=plan),
        measured=summarize(measured, plan=plan, last_steps=last_steps),
        actions=tuple(_compare_actions(_means(simulated), _means(measured))),
        first_difference=_first_difference(simulated, measured),
        num_evaluations=len(evaluations["microbatch"].unique()),
        evaluations_ms=float(evaluations.groupby(["replica", "stage"])["ms"].sum().max()) if len(evaluations) else 0.0,
        num_unmeasured=len(_microbatches(simulated) - _microbatches(measured)),
    )


def _evaluations(timeline: Timeline) -> pd.DataFrame:
    compute = timeline.compute()
    found: pd.DataFrame = compute[letters(compute["action"]) == EVALUATION]
    return found[["replica", "stage", "microbatch"]].assign(ms=found["end_ms"] - found["start_ms"])


def _microbatches(timeline: Timeline) -> set[int]:
    return {int(place) for place in timeline.compute()["microbatch"].unique()}


def action_times(simulated: Timeline, measured: Timeline) -> pd.DataFrame:
    """Every action that both ran: replica, stage, action, letter, simulated_ms and measured_ms."""
    both = _durations(simulated).merge(
        _durations(measured), on=["replica", "stage", "action"], suffixes=("_simulated", "_measured")
    )
    both["letter"] = letters(both["action"])
    return both.rename(columns={"ms_simulated": "simulated_ms", "ms_measured": "measured_ms"})


def _durations(timeline: Timeline) -> pd.DataFrame:
    compute = timeline.compute()
    return compute[["replica", "stage", "action"]].assign(ms=compute["end_ms"] - compute["start_ms"])


def _means(timeline: Timeline) -> dict[tuple[int, str], tuple[int, float]]:
    durations = _durations(timeline)
    durations["letter"] = letters(durations["action"])
    found = durations.groupby(["stage", "letter"])["ms"].agg(["count", "mean"])
    return {
        (int(stage), str(letter)): (int(count), float(mean))
        for (stage, letter), count, mean in found.itertuples(name=None)
    }


def _compare_actions(
    simulated: dict[tuple[int, str], tuple[int, float]], measured: dict[tuple[int, str], tuple[int, float]]
) -> Iterator[ActionComparison]:
    order = {letter: place for place, letter in enumerate(NAMES)}
    nothing = (0, None)
    for stage, letter in sorted(set(simulated) | set(measured), key=lambda key: (key[0], order.get(key[1], 99))):
        num_simulated, simulated_ms = simulated.get((stage, letter), nothing)
        num_measured, measured_ms = measured.get((stage, letter), nothing)
        yield ActionComparison(
            stage=stage,
            action=NAMES.get(letter, letter),
            num_simulated=num_simulated,
            num_measured=num_measured,
            simulated_ms=simulated_ms,
            measured_ms=measured_ms,
        )


def _first_difference(simulated: Timeline, measured: Timeline) -> str | None:
    ours, theirs = (_orders(timeline) for timeline in (simulated, measured))
    for replica in range(simulated.num_replicas):
        for stage in range(simulated.num_stages):
            foretold, ran = ours.get((replica, stage), []), theirs.get((replica, stage), [])
            if foretold == ran:
                continue
            both = min(len(foretold), len(ran))
            place = next((at for at in range(both) if foretold[at] != ran[at]), both)
            words = [actions[place] if place < len(actions) else "nothing" for actions in (foretold, ran)]
            where = f"replica {replica}, stage {stage}" if simulated.num_replicas > 1 else f"stage {stage}"
            return f"{where}, action {place}: {words[0]} was simulated, {words[1]} was executed"
    return None


def _orders(timeline: Timeline) -> dict[tuple[int, int], list[str]]:
    compute = timeline.compute()
    # The simulator knows no evaluations, and they come between actions without changing their order.
    compute = compute[letters(compute["action"]) != EVALUATION]
    places = (compute["replica"] * timeline.num_stages + compute["stage"]).to_numpy()
    words = compute["action"].to_numpy()
    return {
        divmod(int(place), timeline.num_stages): [str(word) for word in words[places == place]]
        for place in np.unique(places)
    }
