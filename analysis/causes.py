"""Why a worker was not busy: its bubble by cause, which adds up to the whole bubble.

Waits that name their cause keep it, for as long as nothing is computed during them. Idle time that neither the
simulator nor explain.py explained (that of an interrupted run) is told apart by phase: `warmup`, `cooldown`, or
`unexplained` in the steady phase. Time in compute that does not count as busy appears as `reduce` or `evaluate`.
"""

import numpy as np

from .actions import BUSY, NAMES
from .phases import Worker, elapsed

CAUSES = ("warmup", "cooldown", "imbalance", "dependency", "transfer", "reduce", "evaluate", "unexplained")
"""In the order in which tables and pictures name them; timelines may bring more."""


def bubble_ms_by_cause(worker: Worker) -> dict[str, float]:
    """Milliseconds of this worker's bubble by cause, causes without any left out."""
    found = _unbusy_compute(worker) | _named_waits(worker)
    for cause, ms in _unnamed_idle(worker).items():
        found[cause] = found.get(cause, 0.0) + ms
    order = (*CAUSES, *sorted(set(found) - set(CAUSES)))
    return {cause: found[cause] for cause in order if found.get(cause, 0.0) > 0.0}


def _unbusy_compute(worker: Worker) -> dict[str, float]:
    lengths = worker.end_ms - worker.start_ms
    return {
        NAMES.get(letter, "unexplained"): float(lengths[worker.letters == letter].sum())
        for letter in np.unique(worker.letters).tolist()
        if letter not in BUSY
    }


def _named_waits(worker: Worker) -> dict[str, float]:
    waits = worker.waits[worker.waits["cause"] != ""]
    starts = np.clip(waits["start_ms"].to_numpy(), worker.run_start_ms, worker.run_end_ms)
    ends = np.clip(waits["end_ms"].to_numpy(), worker.run_start_ms, worker.run_end_ms)
    idle = (ends - starts) - (worker.computing_until(ends) - worker.computing_until(starts))
    return {str(cause): float(ms) for cause, ms in waits.assign(idle=idle).groupby("cause")["idle"].sum().items()}


def _unnamed_idle(worker: Worker) -> dict[str, float]:
    named = worker.waits[worker.waits["cause"] != ""]
    starts = np.concatenate([[worker.run_start_ms], worker.end_ms])
    ends = np.concatenate([worker.start_ms, [worker.run_end_ms]])
    gaps = ends > starts
    starts, ends = starts[gaps], ends[gaps]
    everything = np.ones(len(named), dtype=bool)
    waited = [
        elapsed(named["start_ms"].to_numpy(), named["end_ms"].to_numpy(), everything, moments)
        for moments in (starts, ends)
    ]
    unnamed = np.maximum((ends - starts) - (waited[1] - waited[0]), 0.0)
    # Rounding of clock readings is no wait.
    unnamed[unnamed < 1e-9 * max(worker.run_end_ms - worker.run_start_ms, 1.0)] = 0.0
    warmup = ends <= worker.warmup_end_ms()
    cooldown = ~warmup & (starts >= worker.cooldown_start_ms())
    return {
        "warmup": float(unnamed[warmup].sum()),
        "cooldown": float(unnamed[cooldown].sum()),
        "unexplained": float(unnamed[~warmup & ~cooldown].sum()),
    }
