"""All systems on one workload: the rivals of planner/systems.py and our own plan, replayed on the same hardware.

Every system gets the same kernels and the same devices, so what differs is the plan and its schedule alone. Plans of
one system run one after another, the pipeline drained between them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from ..planner.build_program import build_program
from ..planner.plan import Plan
from ..planner.systems import SystemRun, all_systems
from ..traces.timeline import Timeline
from .simulate import Hardware, Method, simulate

OURS = "loraplex"
_SCHEDULES = {
    "sequential-fixed": "1f1b-flush",
    "sequential-padded": "1f1b-flush",
    "sequential-packed": "1f1b-flush",
    "mlora": "1f1b-greedy",
    "lorafusion": "1f1b-slots",
}
"""What each published system runs: a flush at every global batch; forwards by turns as soon as they may; plain 1F1B
over microbatches that dummies keep apart."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SystemResult:
    """One system's run, from start to end."""

    name: str
    about: str
    schedule: str
    num_tokens: int
    num_microbatches: int
    timeline: Timeline
    """All of its plans, one after another."""

    def makespan_ms(self) -> float:
        """From the first start to the last end."""
        return self.timeline.makespan_ms()

    def tokens_per_s(self) -> float:
        """Real tokens a second, padding and dummies left out."""
        return self.num_tokens / self.makespan_ms() * 1e3


def compare_systems(
    plan: Plan,
    hardware: Hardware,
    *,
    method: Method = "auto",
    progress: Callable[[str, float], None] | None = None,
) -> tuple[SystemResult, ...]:
    """The rivals and `plan` itself, in the published order. `progress` is told the system and the share done."""
    runs = all_systems(
        plan.jobs,
        num_stages=plan.num_stages,
        microbatch_tokens=plan.microbatch_tokens,
        pad_multiple=plan.pad_multiple,
    )
    ours = SystemRun(name=OURS, plans=(plan,), num_tokens=plan.num_tokens(), about=f"this plan ({plan.strategy})")
    results = []
    for number, run in enumerate((*runs, ours)):
        if progress:
            progress(run.name, number / (len(runs) + 1))
        results.append(replay_system(run, hardware, method=method))
    return tuple(results)


def replay_system(run: SystemRun, hardware: Hardware, *, method: Method = "auto") -> SystemResult:
    """Replay the plans of one system one after another."""
    timelines, schedules = [], set()
    for plan in run.plans:
        program = build_program(plan, schedule=_SCHEDULES.get(run.name))
        schedules.add(program.schedule)
        timelines.append(simulate(program, plan, hardware, method=method).timeline)
    return SystemResult(
        name=run.name,
        about=run.about,
        schedule=", ".join(sorted(schedules)),
        num_tokens=run.num_tokens,
        num_microbatches=sum(bool(batch.samples) for plan in run.plans for batch in plan.microbatches),
        timeline=one_after_another(timelines),
    )


def one_after_another(timelines: Sequence[Timeline]) -> Timeline:
    """One timeline of several runs, each beginning where the one before it ends."""
    if len(timelines) == 1:
        return timelines[0]
    begin = 0.0
    frames, counters = [], []
    for timeline in timelines:
        frame = timeline.frame
        frames.append(frame.assign(start_ms=frame["start_ms"] + begin, end_ms=frame["end_ms"] + begin))
        counters.append(timeline.counters.assign(ms=timeline.counters["ms"] + begin))
        begin += timeline.makespan_ms()
    first = timelines[0]
    whole = Timeline.from_frame(
        pd.concat(frames, ignore_index=True),
        source=first.source,
        origin=first.origin,
        num_stages=first.num_stages,
        num_replicas=first.num_replicas,
    )
    return replace(whole, counters=pd.concat(counters, ignore_index=True))
