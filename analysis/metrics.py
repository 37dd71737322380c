"""The numbers of one run, simulated or measured alike: the only place that defines them.

**bubble ratio** = 1 - sum(busy) / (num_stages * num_replicas * makespan). The **makespan** runs from the first start to
the last end of any compute, a stage is **busy** while it computes a Forward, Backward or Step (never inside a receive).
The **steady** bubble ratio is the same without each worker's warmup and cooldown (phases.py), the **span** bubble ratio
measures each worker against its own first start and last end: the figure that zero-bubble papers quote.
Tokens are real ones; padding never counts as work done.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..planner.plan import Plan
from ..planner.trained import trained_tokens
from ..planner.waste import Waste, waste_by_adapter
from ..traces.timeline import Timeline
from .causes import CAUSES, bubble_ms_by_cause
from .completions import completions_ms
from .explain import explain_waits
from .phases import Worker, workers


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSummary:
    """One stage of one replica."""

    replica: int
    stage: int
    busy_ms: float
    bubble_ratio: float
    steady_bubble_ratio: float | None
    """None where the stage has no steady phase."""
    bubble_ms_by_cause: Mapping[str, float]
    peak_memory_bytes: int | None
    """None where memory was not tracked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSummary:
    """One adapter of the plan."""

    name: str
    num_tokens: int
    num_microbatches: int
    padding_tokens: int
    capacity_waste_tokens: float
    stall_slots: float
    """Slots of the plan that stay empty because this adapter's next step has to wait."""
    completion_ms: float | None
    """From the start of the run to the end of its last Step on any stage; None where the timeline holds none of it."""
    alone_ms: float | None = None
    """Its makespan when it runs alone on the same stages, where the caller knows it."""

    def slowdown(self) -> float | None:
        """How many times longer it takes to complete than alone."""
        if self.completion_ms is None or not self.alone_ms:
            return None
        return self.completion_ms / self.alone_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The numbers of one timeline, with those of its plan where a plan was given."""

    source: str
    origin: str
    num_stages: int
    num_replicas: int
    makespan_ms: float
    bubble_ratio: float
    steady_bubble_ratio: float | None
    span_bubble_ratio: float
    bubble_ms_by_cause: Mapping[str, float]
    """Summed over all stages; adds up to the whole bubble."""
    peak_memory_bytes: int | None
    stages: tuple[StageSummary, ...]
    num_tokens: int | None = None
    tokens_per_s: float | None = None
    num_microbatches: int | None = None
    padding_ratio: float | None = None
    """Padding tokens over padded tokens."""
    capacity_waste_ratio: float | None = None
    """Unused capacity over the capacity of all microbatches that hold samples."""
    adapters: tuple[AdapterSummary, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Plain values, ready for json.dumps."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return values | {
            "bubble_ms_by_cause": dict(self.bubble_ms_by_cause),
            "stages": [
                {name: getattr(stage, name) for name in stage.__dataclass_fields__}
                | {"bubble_ms_by_cause": dict(stage.bubble_ms_by_cause)}
                for stage in self.stages
            ],
            "adapters": [
                {name: getattr(adapter, name) for name in adapter.__dataclass_fields__}
                | {"slowdown": adapter.slowdown()}
                for adapter in self.adapters
            ],
        }


def summarize(
    timeline: Timeline,
    *,
    plan: Plan | None = None,
    alone_ms: Mapping[str, float] | None = None,
    last_steps: Mapping[str, int] | None = None,
) -> Summary:
    """All numbers of a timeline; with its plan also tokens, waste and adapters.

    Waits that do not name their cause are explained first (explain.py).
    `alone_ms` gives, by adapter name, the makespan of running that adapter alone on the same stages; `last_steps` the
    last step of a measured run, behind which the samples of an adapter that was halted do not count as tokens.
    """
    crew = tuple(workers(explain_waits(timeline)))
    makespan_ms = timeline.makespan_ms()
    stages = tuple(_stage_summary(worker, makespan_ms, peak_memory(timeline, worker)) for worker in crew)
    peaks = [stage.peak_memory_bytes for stage in stages if stage.peak_memory_bytes is not None]
    summary = Summary(
        source=timeline.source,
        origin=timeline.origin,
        num_stages=timeline.num_stages,
        num_replicas=timeline.num_replicas,
        makespan_ms=makespan_ms,
        bubble_ratio=_bubble(sum(worker.busy_ms() for worker in crew), len(crew) * makespan_ms) or 0.0,
        steady_bubble_ratio=_bubble(
            sum(worker.steady_busy_ms() for worker in crew), sum(worker.steady_ms() for worker in crew)
        ),
        span_bubble_ratio=_bubble(sum(worker.busy_ms() for worker in crew), sum(worker.span_ms() for worker in crew))
        or 0.0,
        bubble_ms_by_cause=_total([stage.bubble_ms_by_cause for stage in stages]),
        peak_memory_bytes=max(peaks, default=None),
        stages=stages,
    )
    return summary if plan is None else _with_plan(summary, timeline, plan, alone_ms or {}, last_steps or {})


def peak_memory(timeline: Timeline, worker: Worker) -> int | None:
    """Most bytes this worker held at once; None where memory was not tracked."""
    counters = timeline.counters
    own = counters[(counters["replica"] == worker.replica) & (counters["stage"] == worker.stage)]
    return int(own["bytes"].max()) if len(own) else None


def _stage_summary(worker: Worker, makespan_ms: float, peak_memory_bytes: int | None) -> StageSummary:
    return StageSummary(
        replica=worker.replica,
        stage=worker.stage,
        busy_ms=worker.busy_ms(),
        bubble_ratio=_bubble(worker.busy_ms(), makespan_ms) or 0.0,
        steady_bubble_ratio=_bubble(worker.steady_busy_ms(), worker.steady_ms()),
        bubble_ms_by_cause=bubble_ms_by_cause(worker),
        peak_memory_bytes=peak_memory_bytes,
    )


def _with_plan(
    summary: Summary, timeline: Timeline, plan: Plan, alone_ms: Mapping[str, float], last_steps: Mapping[str, int]
) -> Summary:
    wastes = waste_by_adapter(plan)
    completions = completions_ms(timeline, plan)
    adapters = tuple(
        AdapterSummary(
            name=job.name,
            num_tokens=waste.num_tokens,
            num_microbatches=waste.num_microbatches,
            padding_tokens=waste.padding_tokens,
            capacity_waste_tokens=waste.capacity_waste_tokens,
            stall_slots=waste.stall_slots,
            completion_ms=completion_ms,
            alone_ms=alone_ms.get(job.name),
        )
        for job, waste, completion_ms in zip(plan.jobs, wastes, completions, strict=True)
    )
    # Of a run that was resumed, the timeline is that of the last part.
    ran = {int(place) for place in timeline.compute()["microbatch"].unique()}
    num_tokens = trained_tokens(plan, last_steps=last_steps, microbatches=ran)
    padding, capacity = waste_ratios(wastes, plan)
    return replace(
        summary,
        num_tokens=num_tokens,
        tokens_per_s=num_tokens / summary.makespan_ms * 1e3 if summary.makespan_ms else None,
        num_microbatches=sum(bool(batch.samples) for batch in plan.microbatches),
        padding_ratio=padding,
        capacity_waste_ratio=capacity,
        adapters=adapters,
    )


def waste_ratios(wastes: Sequence[Waste], plan: Plan) -> tuple[float, float]:
    """Padding over padded tokens, and unused capacity over all capacity, of a whole plan."""
    padding = sum(waste.padding_tokens for waste in wastes)
    unused = sum(waste.capacity_waste_tokens for waste in wastes)
    capacity = sum(bool(batch.samples) for batch in plan.microbatches) * plan.microbatch_tokens
    padded = plan.num_tokens() + padding
    return (padding / padded if padded else 0.0), (unused / capacity if capacity else 0.0)


def _bubble(busy_ms: float, whole_ms: float) -> float | None:
    return 1.0 - busy_ms / whole_ms if whole_ms > 0 else None


def _total(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    order = (*CAUSES, *sorted({cause for part in parts for cause in part} - set(CAUSES)))
    sums = {cause: math.fsum(part.get(cause, 0.0) for part in parts) for cause in order}
    return {cause: ms for cause, ms in sums.items() if ms > 0.0}
