"""Jobs for tests: from nested lists of lengths, and at random."""

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from loraplex.planner.jobs import Job, Sample
from loraplex.planner.packing.workload import Workload, workload_of


def jobs_of(batches: Sequence[Sequence[Sequence[int]]]) -> tuple[Job, ...]:
    """One job per entry, named a0, a1, ...: lengths by adapter and global batch."""
    jobs = []
    for adapter, chain in enumerate(batches):
        index = 0
        cut = []
        for number, lengths in enumerate(chain):
            samples = []
            for length in lengths:
                samples.append(
                    Sample(
                        adapter=adapter, global_batch=number, index=index, num_tokens=length, num_target_tokens=length
                    )
                )
                index += 1
            cut.append(tuple(samples))
        jobs.append(Job(name=f"a{adapter}", global_batches=tuple(cut)))
    return tuple(jobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Jobs and the pipeline they are planned for."""

    jobs: tuple[Job, ...]
    microbatch_tokens: int
    num_stages: int
    num_replicas: int
    pad_multiple: int

    def workload(self) -> Workload:
        return workload_of(
            self.jobs,
            microbatch_tokens=self.microbatch_tokens,
            num_stages=self.num_stages,
            num_replicas=self.num_replicas,
            pad_multiple=self.pad_multiple,
        )


@st.composite
def requests(
    draw: st.DrawFn,
    *,
    max_adapters: int = 5,
    max_batches: int = 4,
    max_samples: int = 7,
    max_replicas: int = 1,
    capacity: int = 60,
) -> Request:
    """Small workloads of every shape: uneven chains and batches, samples exactly at capacity, one of everything."""
    pad_multiple = draw(st.sampled_from((1, 1, 1, 4)))
    length = st.one_of(st.integers(1, capacity), st.sampled_from((1, capacity // 2, capacity // 2 + 1, capacity)))
    batch = st.lists(length, min_size=1, max_size=max_samples)
    chain = st.lists(batch, min_size=1, max_size=max_batches)
    return Request(
        jobs=jobs_of(draw(st.lists(chain, min_size=1, max_size=max_adapters))),
        microbatch_tokens=capacity,
        num_stages=draw(st.integers(1, 5)),
        num_replicas=draw(st.integers(1, max_replicas)),
        pad_multiple=pad_multiple,
    )
