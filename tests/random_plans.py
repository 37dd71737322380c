"""Random small plans for property tests: any order of samples that respects each adapter's global batches."""

from random import Random

from hypothesis import strategies as st

from loraplex.planner.jobs import Job, Sample, job_from_lengths
from loraplex.planner.plan import Microbatch, Plan, microbatch


def even_plan(
    num_stages: int, num_microbatches: int, *, num_batches: int = 1, num_replicas: int = 1, num_tokens: int = 100
) -> Plan:
    """One adapter, one sample a microbatch, `num_microbatches` of them to each of `num_batches` global batches."""
    job = job_from_lengths(
        adapter=0,
        name="a",
        lengths=[num_tokens] * (num_microbatches * num_batches),
        global_batch_size=num_microbatches,
    )
    return Plan(
        jobs=(job,),
        num_stages=num_stages,
        num_replicas=num_replicas,
        microbatch_tokens=num_tokens,
        microbatches=tuple(microbatch([sample]) for batch in job.global_batches for sample in batch),
    )


def random_plan(seed: int, *, num_stages: int, num_replicas: int = 1, max_adapters: int = 4) -> Plan:
    """A plan that keeps the order of steps and nothing else: dependents stand close together as often as not."""
    random = Random(seed)
    jobs = tuple(
        job_from_lengths(
            adapter=adapter,
            name=f"adapter-{adapter}",
            lengths=[random.randint(1, 60) for _ in range(random.randint(1, 12))],
            global_batch_size=random.randint(1, 5),
        )
        for adapter in range(random.randint(1, max_adapters))
    )
    return Plan(
        jobs=jobs,
        num_stages=num_stages,
        num_replicas=num_replicas,
        microbatch_tokens=10_000,
        pad_multiple=random.choice((1, 8)),
        microbatches=tuple(_stream(random, jobs, num_replicas)),
    )


def _stream(random: Random, jobs: tuple[Job, ...], num_replicas: int) -> list[Microbatch]:
    waiting = [[sample for batch in job.global_batches for sample in batch] for job in jobs]
    microbatches: list[Microbatch] = []
    while any(waiting):
        slot: list[list[Sample]] = [[] for _ in range(num_replicas)]
        closed: dict[int, int] = {}
        for _ in range(random.randint(1, 3 * num_replicas)):
            adapter = random.choice([index for index, rest in enumerate(waiting) if rest] or [0])
            if not waiting[adapter]:
                break
            number = waiting[adapter][0].global_batch
            if closed.setdefault(adapter, number) == number:
                slot[random.randrange(num_replicas)].append(waiting[adapter].pop(0))
        if any(slot):
            microbatches += [microbatch(samples) for samples in slot]
    return microbatches


@st.composite
def plans(draw: st.DrawFn, *, max_stages: int = 6, max_replicas: int = 1) -> Plan:
    """Random plans as a hypothesis strategy."""
    return random_plan(
        draw(st.integers(0, 2**32)),
        num_stages=draw(st.integers(1, max_stages)),
        num_replicas=draw(st.integers(1, max_replicas)),
    )
