"""Where sharing one pipeline pays: adapters together against the same adapters apart, on the same stages.

Every system may choose its own best size of microbatch from the same list, since a user would. All run the same
kernels, so what differs is the plan and its schedule alone. Lengths are drawn from the shipped tables of real data sets;
`even` stands for samples of 1,024 tokens each.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..planner.jobs import Job, job_from_lengths
from ..planner.make_plan import make_plan
from ..planner.plan import Plan, microbatch
from ..planner.systems import SystemRun, lorafusion, mlora_round_robin, sequential_packed, sequential_padded
from ..traces.costs import CostProfile
from ..traces.profiles import load_profile
from ..traces.workloads import sample_lengths
from .simulate import Hardware, simulated_makespan_ms
from .systems import SystemResult, replay_system

PROFILE = "llama-70b-h100-published"
CAPACITIES = (2048, 4096, 8192)
"""Tokens a microbatch may hold; a sample longer than the smallest leaves that one out."""
SAMPLE_COUNTS = (1, 2, 4, 8)
"""Samples a microbatch holds where a system goes by their number, as Megatron-style trainers do."""
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
    mean_completion_ratio: float
    """Mean over adapters of the time until it is done: together over apart, where apart the shortest goes first."""


def workload(names: Sequence[str], *, global_batch_size: int, num_batches: int, longest: int, seed: int = 42) -> tuple[Job, ...]:
    """One adapter a name, each with its own draws, cut at `longest` tokens."""
    jobs = []
    for adapter, name in enumerate(names):
        count = global_batch_size * num_batches
        lengths = [EVEN_TOKENS] * count if name == "even" else sample_lengths(name, num_samples=count, seed=seed + adapter)
        jobs.append(
            job_from_lengths(
                adapter=adapter,
                name=f"{name}-{adapter}",
                lengths=[min(length, longest) for length in lengths],
                global_batch_size=global_batch_size,
            )
        )
    return tuple(jobs)


def sequential_fixed(jobs: Sequence[Job], *, num_stages: int, num_samples: int) -> SystemRun:
    """One adapter after another, a fixed number of samples a microbatch in data order, no padding, a flush a batch.

    What LoRAFusion (arXiv 2510.00206) measured as "Megatron-LM PP", by its scripts.
    """
    plans = []
    for job in jobs:
        alone = job_from_lengths(
            adapter=0,
            name=job.name,
            lengths=[sample.num_tokens for batch in job.global_batches for sample in batch],
            global_batch_size=len(job.global_batches[0]),
        )
        bins = [
            microbatch(batch[first : first + num_samples])
            for batch in alone.global_batches
            for first in range(0, len(batch), num_samples)
        ]
        plans.append(
            Plan(
                jobs=(alone,),
                num_stages=num_stages,
                microbatch_tokens=max(batch.num_tokens() for batch in bins),
                schedule="1f1b-flush",
                microbatches=tuple(bins),
                strategy="sequential fixed",
            )
        )
    return SystemRun(
        name="sequential-fixed",
        plans=tuple(plans),
        num_tokens=sum(job.num_tokens() for job in jobs),
        about="one adapter at a time, a fixed number of samples a microbatch in data order, flushed",
    )


def compare_workload(name: str, jobs: Sequence[Job], *, hardware: Hardware, num_stages: int) -> tuple[SystemPoint, ...]:
    """All systems on these jobs, each at its best microbatch, in the published order."""
    sized: dict[str, Callable[[int], SystemRun]] = {
        "sequential-padded": lambda tokens: sequential_padded(jobs, num_stages=num_stages, microbatch_tokens=tokens),
        "sequential-packed": lambda tokens: sequential_packed(jobs, num_stages=num_stages, microbatch_tokens=tokens),
        "mlora": lambda tokens: mlora_round_robin(jobs, num_stages=num_stages, microbatch_tokens=tokens),
        "lorafusion": lambda tokens: lorafusion(jobs, num_stages=num_stages, microbatch_tokens=tokens),
        "loraplex": lambda tokens: ours(jobs, num_stages=num_stages, microbatch_tokens=tokens, profile=hardware.profile),
    }
    runs = [("sequential-fixed", [(f"{count} samples", sequential_fixed(jobs, num_stages=num_stages, num_samples=count)) for count in SAMPLE_COUNTS])]
    for system, make in sized.items():
        runs.append((system, [(f"{tokens} tokens", make(tokens)) for tokens in capacities(jobs)]))
    points: list[SystemPoint] = []
    for system, choices in runs:
        chosen, result = _best(choices, hardware)
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


def capacities(jobs: Sequence[Job]) -> tuple[int, ...]:
    """The sizes that every sample of these jobs fits into."""
    longest = max(sample.num_tokens for job in jobs for batch in job.global_batches for sample in batch)
    return tuple(tokens for tokens in CAPACITIES if tokens >= longest)


def ours(jobs: Sequence[Job], *, num_stages: int, microbatch_tokens: int, profile: CostProfile) -> SystemRun:
    """Our plan of these jobs."""
    plan = make_plan(jobs, num_stages=num_stages, microbatch_tokens=microbatch_tokens, profile=profile, time_limit_s=10.0)
    return SystemRun(name="loraplex", plans=(plan,), num_tokens=plan.num_tokens(), about=plan.strategy)


def _best(choices: Sequence[tuple[str, SystemRun]], hardware: Hardware) -> tuple[str, SystemResult]:
    results = [(chosen, replay_system(run, hardware, method="recurrence")) for chosen, run in choices]
    return min(results, key=lambda entry: entry[1].makespan_ms())


def _bubble_ratio(result: SystemResult) -> float:
    # Nothing but forwards, backwards and steps stands in these timelines, so what is not computed is bubble.
    compute = result.timeline.compute()
    busy_ms = float((compute["end_ms"] - compute["start_ms"]).sum())
    return 1.0 - busy_ms / (result.timeline.num_stages * result.makespan_ms())
