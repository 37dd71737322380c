"""Where sharing one pipeline pays: adapters together against the same adapters apart, on the same stages.

Every system may choose its own best size of microbatch, since a user would: those that go by the number of samples from
SAMPLE_COUNTS, those that pack from CAPACITIES. All run the same kernels, so what differs is the plan and its schedule
alone. Lengths are drawn from the shipped tables of real data
sets; `even` stands for samples of 1,024 tokens each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from ..planner.jobs import Job, Sample, job_from_lengths
from ..planner.make_plan import make_plan
from ..planner.packing.targets import cut_samples, plan_at_target
from ..planner.plan import Plan, microbatch
from ..planner.systems import SystemRun, lorafusion, mlora_round_robin, sequential_fixed, sequential_packed
from ..traces.costs import CostProfile
from ..traces.counted import counted
from ..traces.workloads import DATASETS, sample_lengths
from .simulate import Hardware
from .systems import SystemResult, replay_system

PROFILE = "llama-70b-h100-published"
CAPACITIES = (512, 1024, 2048, 4096, 8192)
"""Tokens up to which a microbatch is filled; where a system allows it, a longer sample stands alone."""
SAMPLE_COUNTS = (1, 2, 4, 8)
"""Samples a microbatch holds where a system goes by their number, as Megatron-style trainers and mLoRA do. LoRAFusion's
scripts set 2, 4 or 8 for each data set by hand; here each system takes its best."""
EVEN_TOKENS = 1024
MIXED = ("gsm8k", "dialogsum", "scitldr_a", "qmsum_span")
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemPoint:
    """One system on one workload, at its best microbatch."""

    workload: str
    system: str
    microbatch: str
    """What it chose: capacity in tokens, or samples."""
    num_microbatches: int
    tokens_per_s: float
    bubble_ratio: float
    speedup: float = 1.0
    """Over the first system of its workload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingPoint:
    """The same adapters together and apart."""

    workload: str
    num_stages: int
    num_adapters: int
    global_batch_size: int
    microbatches_per_batch: float
    """Of an adapter alone, at its best microbatch: what its own pipeline is filled with between two flushes."""
    apart_tokens_per_s: float
    shared_tokens_per_s: float
    speedup: float
    own_gpu_tokens_per_s: float | None
    """With as many adapters as stages: each on a GPU of its own with the whole model, if that fits, all at once."""
    mean_completion_ratio: float
    """Mean over adapters of the time until it is done: together over apart, where apart the shortest goes first."""


def workload(
    names: Sequence[str],
    *,
    global_batch_size: int,
    num_batches: int,
    longest: int,
    lengths: Mapping[str, Sequence[int]] | None = None,
    seed: int = 42,
) -> tuple[Job, ...]:
    """One adapter a name, each with its own samples, cut at `longest` tokens.

    Lengths are drawn from the shipped tables, or taken in order from `lengths`, adapter after adapter, round and round.
    """
    jobs = []
    count = global_batch_size * num_batches
    for adapter, name in enumerate(names):
        if name == "even":
            own: Sequence[int] = [EVEN_TOKENS] * count
        elif lengths is None:
            own = sample_lengths(name, num_samples=count, seed=seed + adapter)
        else:
            own = [lengths[name][(adapter * count + index) % len(lengths[name])] for index in range(count)]
        jobs.append(
            job_from_lengths(
                adapter=adapter,
                name=f"{name}-{adapter}",
                lengths=[min(length, longest) for length in own],
                global_batch_size=global_batch_size,
            )
        )
    return tuple(jobs)


def compare_workload(name: str, jobs: Sequence[Job], *, hardware: Hardware, num_stages: int) -> tuple[SystemPoint, ...]:
    """All systems on these jobs, each at its best microbatch, in the published order."""
    systems = {
        "sequential-fixed": _fixed(jobs, num_stages=num_stages),
        "sequential-padded": _fixed(jobs, num_stages=num_stages, padded=True),
        "sequential-packed": _packed(jobs, num_stages=num_stages),
        "mlora": [
            (f"{count} samples", mlora_round_robin(jobs, num_stages=num_stages, num_samples=count))
            for count in SAMPLE_COUNTS
        ],
        # The published algorithm knows one capacity, which every sample must fit into.
        "lorafusion": [
            (f"{tokens} tokens", lorafusion(jobs, num_stages=num_stages, microbatch_tokens=tokens))
            for tokens in capacities(jobs)
        ],
        "loraplex": _ours(jobs, num_stages=num_stages, profile=hardware.profile),
    }
    points: list[SystemPoint] = []
    for system, choices in systems.items():
        chosen, _, result = _best(choices, hardware)
        points.append(
            SystemPoint(
                workload=name,
                system=system,
                microbatch=chosen,
                num_microbatches=result.num_microbatches,
                tokens_per_s=result.tokens_per_s(),
                bubble_ratio=_bubble_ratio(result),
                speedup=result.tokens_per_s() / points[0].tokens_per_s if points else 1.0,
            )
        )
    return tuple(points)


def share(name: str, jobs: Sequence[Job], *, hardware: Hardware, num_stages: int) -> SharingPoint:
    """These adapters together and apart, both at their best microbatch; apart may cut by samples or by tokens."""
    choices = [*_fixed(jobs, num_stages=num_stages), *_packed(jobs, num_stages=num_stages)]
    _, apart, apart_result = _best(choices, hardware)
    _, _, shared = _best(_ours(jobs, num_stages=num_stages, profile=hardware.profile), hardware)
    alone_ms = sorted(replay_system(replace(apart, plans=(plan,)), hardware).makespan_ms() for plan in apart.plans)
    apart_mean_ms = sum(accumulate(alone_ms)) / len(alone_ms)
    num_batches = sum(len(job.global_batches) for job in jobs)
    return SharingPoint(
        workload=name,
        num_stages=num_stages,
        num_adapters=len(jobs),
        global_batch_size=len(jobs[0].global_batches[0]),
        microbatches_per_batch=apart_result.num_microbatches / num_batches,
        apart_tokens_per_s=apart_result.tokens_per_s(),
        shared_tokens_per_s=shared.tokens_per_s(),
        speedup=shared.tokens_per_s() / apart_result.tokens_per_s(),
        own_gpu_tokens_per_s=own_gpu_tokens_per_s(jobs, hardware=hardware) if len(jobs) == num_stages else None,
        mean_completion_ratio=_mean_completion_ms(shared, len(jobs)) / apart_mean_ms,
    )


def own_gpu_tokens_per_s(jobs: Sequence[Job], *, hardware: Hardware) -> float:
    """Every adapter on a GPU of its own with the whole model, all at once: until the slowest is done, real tokens/s."""
    _, apart, _ = _best(_packed(jobs, num_stages=1), hardware)
    slowest_ms = max(replay_system(replace(apart, plans=(plan,)), hardware).makespan_ms() for plan in apart.plans)
    return apart.num_tokens / slowest_ms * 1e3


def system_points(
    *, hardware: Hardware, progress: Progress, lengths: Mapping[str, Sequence[int]] | None = None
) -> Iterator[SystemPoint]:
    """All systems on 4 stages, four adapters of one data set each and four of different ones; global batches of 16."""
    workloads = {name: (name,) * 4 for name in DATASETS} | {"mixed": MIXED}
    for number, (name, names) in enumerate(workloads.items()):
        progress(f"systems on {name}", number / len(workloads))
        jobs = workload(names, global_batch_size=16, num_batches=16, longest=8192, lengths=lengths)
        yield from compare_workload(name, jobs, hardware=hardware, num_stages=4)


def sharing_points(
    *, hardware: Hardware, progress: Progress, lengths: Mapping[str, Sequence[int]] | None = None
) -> Iterator[SharingPoint]:
    """Together against apart, by global batch size on 2, 4 and 8 stages, and by number of adapters on 4 stages."""
    several: dict[str, tuple[str, ...]] = {"mixed": MIXED, "even": ("even",) * 4}
    asked = [
        (name, names, num_stages, size)
        for name, names in several.items()
        for num_stages in (2, 4, 8)
        for size in (4, 8, 16, 32, 64, 128)
    ]
    asked += [("mixed", (MIXED * 4)[:count], 4, 16) for count in (1, 2, 8, 16)]
    asked += [("even", ("even",) * count, 4, 16) for count in (1, 2, 8, 16)]
    for number, (name, names, num_stages, size) in enumerate(asked):
        progress(
            f"{counted(len(names), f'{name} adapter')}, {counted(num_stages, 'stage')}, batches of {size}",
            number / len(asked),
        )
        jobs = workload(names, global_batch_size=size, num_batches=8, longest=8192, lengths=lengths)
        yield share(name, jobs, hardware=hardware, num_stages=num_stages)


def _fixed(jobs: Sequence[Job], *, num_stages: int, padded: bool = False) -> list[tuple[str, SystemRun]]:
    return [
        (f"{count} samples", sequential_fixed(jobs, num_stages=num_stages, num_samples=count, padded=padded))
        for count in SAMPLE_COUNTS
    ]


def _mean_completion_ms(result: SystemResult, num_adapters: int) -> float:
    compute = result.timeline.compute()
    owners = compute["action"].str.extract(r"^\d+S(\d+)\.", expand=False)
    return float(compute["end_ms"].groupby(owners).max().sum()) / num_adapters


def capacities(jobs: Sequence[Job]) -> tuple[int, ...]:
    """The sizes that every sample of these jobs fits into."""
    longest = max(sample.num_tokens for job in jobs for batch in job.global_batches for sample in batch)
    return tuple(tokens for tokens in CAPACITIES if tokens >= longest)


def _ours(jobs: Sequence[Job], *, num_stages: int, profile: CostProfile) -> list[tuple[str, SystemRun]]:
    def planner(cut: Sequence[Job], tokens: int) -> Plan:
        return make_plan(cut, num_stages=num_stages, microbatch_tokens=tokens, profile=profile, time_limit_s=10.0)

    runs = []
    for tokens in CAPACITIES:
        capacity = max(tokens, capacities(jobs)[0])
        plan = plan_at_target(jobs, target_tokens=tokens, microbatch_tokens=capacity, planner=planner)
        run = SystemRun(name="loraplex", plans=(plan,), num_tokens=plan.num_tokens(), about=plan.strategy)
        runs.append((f"{tokens} tokens", run))
    return runs


def _packed(jobs: Sequence[Job], *, num_stages: int) -> list[tuple[str, SystemRun]]:
    return _at_targets(
        jobs, lambda cut, tokens: sequential_packed(cut, num_stages=num_stages, microbatch_tokens=tokens)
    )


def _at_targets(jobs: Sequence[Job], make: Callable[[Sequence[Job], int], SystemRun]) -> list[tuple[str, SystemRun]]:
    """Runs of a system at every size; a sample longer than that stands alone, as in our own plans."""
    return [
        (f"{tokens} tokens", _whole(make([cut_samples(job, tokens) for job in jobs], tokens), jobs))
        for tokens in CAPACITIES
    ]


def _whole(run: SystemRun, jobs: Sequence[Job]) -> SystemRun:
    """The run with every sample at its full length again. Plan k of several is that of adapter k, there called 0."""
    lengths = {
        (sample.adapter, sample.index): sample.num_tokens
        for job in jobs
        for batch in job.global_batches
        for sample in batch
    }

    def whole(sample: Sample, position: int) -> Sample:
        tokens = lengths[position if len(run.plans) > 1 else sample.adapter, sample.index]
        return replace(sample, num_tokens=tokens, num_target_tokens=tokens)

    plans = []
    for position, plan in enumerate(run.plans):
        bins = tuple(microbatch([whole(sample, position) for sample in batch.samples]) for batch in plan.microbatches)
        largest = max(batch.num_tokens() for batch in bins)
        plans.append(replace(plan, microbatches=bins, microbatch_tokens=max(plan.microbatch_tokens, largest)))
    return replace(run, plans=tuple(plans), num_tokens=sum(lengths.values()))


def _best(choices: Sequence[tuple[str, SystemRun]], hardware: Hardware) -> tuple[str, SystemRun, SystemResult]:
    results = [(chosen, run, replay_system(run, hardware, method="recurrence")) for chosen, run in choices]
    return min(results, key=lambda entry: entry[2].makespan_ms())


def _bubble_ratio(result: SystemResult) -> float:
    # Nothing but forwards, backwards and steps stands in these timelines, so what is not computed is bubble.
    compute = result.timeline.compute()
    busy_ms = float((compute["end_ms"] - compute["start_ms"]).sum())
    return 1.0 - busy_ms / (result.timeline.num_stages * result.makespan_ms())
