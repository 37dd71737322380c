"""Planning online: jobs come and go while a plan runs, and only what has not entered the pipeline is planned anew."""

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter

from ..traces.counted import counted
from .dependencies import gap_slots, slot_numbers, waits_for
from .errors import PlanError
from .jobs import Job, Sample
from .packing.balance import balance
from .packing.candidates import stream_recipes
from .packing.lower_bounds import batch_bounds, lower_bounds
from .packing.pack_greedy import Bins
from .packing.search import Found, Search, search_staggers
from .packing.workload import Workload, workload_of
from .plan import Microbatch, Plan

_Step = tuple[int, int]


def replan(
    plan: Plan,
    *,
    num_entered: int,
    add: Sequence[Job] = (),
    withdraw: Sequence[str] = (),
    data_fingerprint: str | None = None,
    time_limit_s: float = 10.0,
) -> Plan:
    """The plan from here on: its first `num_entered` slots as they are, the rest anew.

    A withdrawn adapter still finishes the global batch that has begun, so that its last step is exact; one that has not
    begun at all is left out. Added jobs come last. Adapters are renumbered; their names stay. Where nothing is added,
    the result never takes more slots than going on as planned. Raises PlanError on what cannot be.
    """
    start = perf_counter()
    if not 0 <= num_entered <= plan.num_slots():
        raise PlanError(
            f"num_entered={num_entered} must lie between 0 and the plan's {counted(plan.num_slots(), 'slot')}"
        )
    unknown = sorted(set(withdraw) - {job.name for job in plan.jobs})
    if unknown:
        raise PlanError(
            f"withdraw={unknown}: no adapter of the plan has that name; it has "
            f"{', '.join(job.name for job in plan.jobs)}"
        )
    entered = plan.microbatches[: num_entered * plan.num_replicas]
    kept = _kept_jobs(plan, entered=entered, withdraw=frozenset(withdraw))
    if not kept and not add:
        raise PlanError("every adapter is withdrawn and none has begun: nothing is left to plan")
    places = {adapter: place for place, (adapter, _) in enumerate(kept)}
    jobs = tuple(_renumbered(job, place) for place, job in enumerate((*(job for _, job in kept), *add)))
    prefix = tuple(_moved(batch, places) for batch in entered)
    base = replace(
        plan,
        jobs=jobs,
        microbatches=prefix,
        adapter_groups=(),
        solver=(),
        data_fingerprint=plan.data_fingerprint if data_fingerprint is None else data_fingerprint,
    )
    whole = _whole_bound(base)
    rest = _rest_jobs(base)
    if not any(job.global_batches for job in rest):
        return replace(base, strategy="online", lower_bound_slots=whole, seconds=perf_counter() - start)
    going_on = [] if add else [_moved(batch, places, jobs) for batch in plan.microbatches[len(entered) :]]
    tail, least = _best_tail(base, rest=rest, going_on=going_on, end_s=start + time_limit_s)
    return replace(
        base,
        microbatches=(*prefix, *tail),
        strategy="online",
        lower_bound_slots=max(whole, least),
        seconds=perf_counter() - start,
    )


def _kept_jobs(plan: Plan, *, entered: Sequence[Microbatch], withdraw: frozenset[str]) -> list[tuple[int, Job]]:
    """Jobs that go on, with their old numbers: withdrawn ones up to the batch that has begun."""
    begun: dict[int, int] = {}
    for batch in entered:
        for adapter, number in batch.global_batches():
            begun[adapter] = max(begun.get(adapter, 0), number + 1)
    kept = []
    for adapter, job in enumerate(plan.jobs):
        if job.name not in withdraw:
            kept.append((adapter, job))
        elif adapter in begun:
            kept.append((adapter, replace(job, global_batches=job.global_batches[: begun[adapter]])))
    return kept


def _renumbered(job: Job, adapter: int) -> Job:
    batches = tuple(tuple(replace(sample, adapter=adapter) for sample in batch) for batch in job.global_batches)
    return replace(job, global_batches=batches)


def _moved(batch: Microbatch, places: dict[int, int], jobs: Sequence[Job] | None = None) -> Microbatch:
    """A microbatch under the new numbers; with `jobs`, without the samples they have dropped."""
    return Microbatch(
        samples=tuple(
            replace(sample, adapter=places[sample.adapter])
            for sample in batch.samples
            if sample.adapter in places
            and (jobs is None or sample.global_batch < len(jobs[places[sample.adapter]].global_batches))
        )
    )


def _rest_jobs(base: Plan) -> tuple[Job, ...]:
    """The jobs without the samples that have entered; batch numbers are kept, empty batches left out."""
    gone = {(sample.adapter, sample.index) for batch in base.microbatches for sample in batch.samples}
    return tuple(
        replace(
            job,
            global_batches=tuple(
                left
                for batch in job.global_batches
                if (left := tuple(sample for sample in batch if (sample.adapter, sample.index) not in gone))
            ),
        )
        for job in base.jobs
    )


def _whole_bound(base: Plan) -> int:
    workload = _workload(base, base.jobs)
    return max(lower_bounds(workload).slots(), len(_numbers(base, [])))


def _workload(base: Plan, jobs: Sequence[Job]) -> Workload:
    return workload_of(
        jobs,
        microbatch_tokens=base.microbatch_tokens,
        num_stages=base.num_stages,
        num_replicas=base.num_replicas,
        pad_multiple=base.pad_multiple,
        schedule=base.schedule,
    )


def _best_tail(
    base: Plan, *, rest: Sequence[Job], going_on: Sequence[Microbatch], end_s: float
) -> tuple[tuple[Microbatch, ...], int]:
    """Microbatches of the rest, and a bound on the slots of any plan that starts like this one."""
    numbers = _numbers(base, [])
    first_free = numbers[-1] + 1 if numbers else 0
    waiting = [adapter for adapter, job in enumerate(rest) if job.global_batches]
    # For the strategies, what is left are jobs of their own: numbered from 0, steps counted from 0.
    workload = _workload(base, [_from_zero(rest[adapter], place) for place, adapter in enumerate(waiting)])
    back = [sample for adapter in waiting for batch in rest[adapter].global_batches for sample in batch]
    bounds = batch_bounds(workload)
    lower = lower_bounds(workload, bounds=bounds)

    def score(bins: Bins) -> tuple[float, ...]:
        return _numbers(base, _rows(base, _as_microbatches(bins, back)))[-1] + 1, sum(map(bool, bins))

    search = Search(
        workload=workload,
        bounds=bounds,
        lower=lower,
        score_of=score,
        is_best_possible=lambda found: found[0] == first_free + lower.slots(),
        end_s=end_s,
    )
    ready = tuple(max(0, _ready(base, rest[adapter], numbers) - first_free) for adapter in waiting)
    if going_on:
        item_of = {(sample.adapter, sample.index): item for item, sample in enumerate(back)}
        bins = [[item_of[sample.adapter, sample.index] for sample in batch.samples] for batch in going_on]
        search.add(
            Found(score=score(_without_empty_rows(base, bins)), bins=_without_empty_rows(base, bins), name="as planned")
        )
    sweeps = tuple(replace(recipe, ready=ready) for recipe in stream_recipes(workload))
    search.try_all(sweeps)
    search_staggers(search, sweeps)
    best = balance(workload, search.found[0].bins, cost_of=[float(size) for size in workload.sizes])
    return _as_microbatches(best, back), first_free + lower.slots()


def _from_zero(job: Job, adapter: int) -> Job:
    batches = tuple(
        tuple(replace(sample, adapter=adapter, global_batch=number) for sample in batch)
        for number, batch in enumerate(job.global_batches)
    )
    return replace(job, global_batches=batches)


def _as_microbatches(bins: Sequence[Sequence[int]], samples: Sequence[Sample]) -> tuple[Microbatch, ...]:
    rows = ([samples[item] for item in items] for items in bins)
    return tuple(
        Microbatch(samples=tuple(sorted(row, key=lambda sample: (sample.adapter, sample.index)))) for row in rows
    )


def _without_empty_rows(base: Plan, bins: Bins) -> Bins:
    out: Bins = []
    for first in range(0, len(bins), base.num_replicas):
        row = bins[first : first + base.num_replicas]
        if any(row):
            out += row
    return out


def _rows(base: Plan, microbatches: Sequence[Microbatch]) -> list[tuple[_Step, ...]]:
    return [
        tuple({step for batch in microbatches[first : first + base.num_replicas] for step in batch.global_batches()})
        for first in range(0, len(microbatches), base.num_replicas)
    ]


def _numbers(base: Plan, rows: Sequence[tuple[_Step, ...]]) -> list[int]:
    """Slots of what has entered and of further rows."""
    gap = gap_slots(base.schedule, num_stages=base.num_stages)
    return slot_numbers(waits_for([*_rows(base, base.microbatches), *rows]), gap=gap)


def _ready(base: Plan, job: Job, numbers: Sequence[int]) -> int:
    """First slot in which the next batch of this job may enter."""
    sample = job.global_batches[0][0]
    before = (sample.adapter, sample.global_batch - 1)
    gap = gap_slots(base.schedule, num_stages=base.num_stages)
    rows = _rows(base, base.microbatches)
    return max((number + gap for number, row in zip(numbers, rows, strict=True) if before in row), default=0)
