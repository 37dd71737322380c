"""Busy time and phases of every worker: the ground under the bubble ratio.

A worker is one stage of one replica. Its **busy** time is the compute of Forward, Backward (whole or split) and Step.
Its **warmup** runs from the start of the run to the start of its first backward, its **cooldown** from the end of its
last forward to the end of the run, its **steady** phase between the two (empty under GPipe, whose forwards all come
first). A flushed or uniform 1F1B step is busy throughout its steady phase, so all of its bubble is warmup and cooldown.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ..traces.timeline import Timeline
from .actions import BACKWARDS, BUSY, FORWARDS, letters

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Worker:
    """The compute of one stage of one replica, in order of time, and the run it belongs to."""

    replica: int
    stage: int
    run_start_ms: float
    run_end_ms: float
    letters: NDArray[np.str_]
    start_ms: Floats
    end_ms: Floats
    waits: pd.DataFrame
    """Wait spans of this worker, with the columns of Span."""

    def busy_ms(self) -> float:
        """Time in Forward, Backward and Step."""
        return float(self.busy_until(self.run_end_ms))

    def busy_until(self, ms: ArrayLike) -> Floats:
        """Busy time before each of these moments."""
        return elapsed(self.start_ms, self.end_ms, np.isin(self.letters, BUSY), ms)

    def computing_until(self, ms: ArrayLike) -> Floats:
        """Time before each of these moments in any compute span, busy or not (Reduce and Evaluate are not)."""
        return elapsed(self.start_ms, self.end_ms, np.ones(len(self.letters), dtype=bool), ms)

    def warmup_end_ms(self) -> float:
        """Start of its first backward; the end of the run if it has none."""
        starts = self.start_ms[np.isin(self.letters, BACKWARDS)]
        return float(starts.min()) if len(starts) else self.run_end_ms

    def cooldown_start_ms(self) -> float:
        """End of its last forward, never before the end of its warmup."""
        ends = self.end_ms[np.isin(self.letters, FORWARDS)]
        return max(float(ends.max()) if len(ends) else self.run_start_ms, self.warmup_end_ms())

    def steady_ms(self) -> float:
        """Length of its steady phase."""
        return self.cooldown_start_ms() - self.warmup_end_ms()

    def steady_busy_ms(self) -> float:
        """Busy time inside its steady phase."""
        return float(self.busy_until(self.cooldown_start_ms()) - self.busy_until(self.warmup_end_ms()))

    def span_ms(self) -> float:
        """From its own first start to its own last end: shorter than the makespan where a worker starts late."""
        return float(self.end_ms.max() - self.start_ms.min()) if len(self.start_ms) else 0.0


def elapsed(start_ms: Floats, end_ms: Floats, chosen: NDArray[np.bool_], ms: ArrayLike) -> Floats:
    """Time before each moment `ms` that lies in the chosen ones of these disjoint intervals, ordered by start."""
    starts, ends = start_ms[chosen], end_ms[chosen]
    if not len(starts):
        return np.zeros_like(np.asarray(ms, dtype=np.float64))
    done = np.concatenate([[0.0], np.cumsum(ends - starts)])
    knots = np.stack([starts, ends], axis=1).ravel()
    values = np.stack([done[:-1], done[1:]], axis=1).ravel()
    return np.asarray(np.interp(np.asarray(ms, dtype=np.float64), knots, values))


def workers(timeline: Timeline) -> Iterator[Worker]:
    """Every worker of a timeline, replica by replica, one without spans included."""
    compute = timeline.compute()
    waits = timeline.frame[timeline.frame["kind"] == "wait"]
    run_start_ms, run_end_ms = (
        (float(compute["start_ms"].min()), float(compute["end_ms"].max())) if len(compute) else (0.0, 0.0)
    )
    place = (compute["replica"] * timeline.num_stages + compute["stage"]).to_numpy()
    wait_place = (waits["replica"] * timeline.num_stages + waits["stage"]).to_numpy()
    all_letters = letters(compute["action"])
    starts, ends = compute["start_ms"].to_numpy(), compute["end_ms"].to_numpy()
    for number in range(timeline.num_replicas * timeline.num_stages):
        rows = np.flatnonzero(place == number)
        yield Worker(
            replica=number // timeline.num_stages,
            stage=number % timeline.num_stages,
            run_start_ms=run_start_ms,
            run_end_ms=run_end_ms,
            letters=all_letters[rows],
            start_ms=starts[rows],
            end_ms=ends[rows],
            waits=waits[wait_place == number],
        )
