"""Streaming, slot by slot."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex.planner.packing.lower_bounds import lower_bounds
from loraplex.planner.packing.stream import StreamPolicy, stream
from loraplex.planner.packing.workload import workload_of
from loraplex.planner.plan import Plan
from loraplex.planner.verify import verify
from loraplex.tests.random_jobs import Request, jobs_of, requests

EAGER = StreamPolicy(margin_slots=10**9)
"""Every adapter takes all it can fill, the longest chain first."""
FULL = StreamPolicy(margin_slots=-(10**9))
"""Slots are filled exactly, whoever fills them."""


def test_the_longest_chain_goes_first_and_others_fill_its_wait() -> None:
    workload = workload_of(jobs_of([[[9], [9]], [[8]], [[8]]]), microbatch_tokens=10, num_stages=3)
    assert stream(workload, policy=EAGER) == [[0], [2], [3], [1]]
    assert workload.num_slots([[0], [2], [3], [1]]) == 4


def test_a_slot_is_filled_exactly() -> None:
    workload = workload_of(jobs_of([[[6, 5]], [[4, 3]]]), microbatch_tokens=10)
    assert [sorted(row) for row in stream(workload, policy=FULL)] == [[0, 2], [1, 3]]


def test_small_samples_are_kept_for_later() -> None:
    # 6 + 4 fills a slot, and so does 6 + 2 + 2; the saving policy takes the former.
    workload = workload_of(jobs_of([[[6, 2, 2, 4, 8]]]), microbatch_tokens=10)
    saving = StreamPolicy(margin_slots=-(10**9), tolerance=0.0, max_count=2)
    assert [sorted(row) for row in stream(workload, policy=saving)] == [[1, 4], [0, 3], [2]]


def test_an_adapter_enters_when_it_is_ready() -> None:
    workload = workload_of(jobs_of([[[6]], [[6]]]), microbatch_tokens=10)
    assert stream(workload, policy=EAGER, ready=[5, 0]) == [[1], [0]]


def test_an_adapter_due_earlier_goes_first() -> None:
    workload = workload_of(jobs_of([[[6], [6], [6]], [[6]]]), microbatch_tokens=10)
    assert stream(workload, policy=EAGER) == [[0], [1], [2], [3]]
    assert stream(workload, policy=EAGER, due=[100, 1]) == [[3], [0], [1], [2]]


@settings(max_examples=250)
@given(
    requests(max_replicas=3),
    st.sampled_from((-(10**9), 0, 2, 10**9)),
    st.sampled_from(((0.0, 0), (0.1, 3))),
    st.integers(0, 2**32),
)
def test_every_sweep_keeps_every_rule_and_the_bound(
    request: Request, margin: int, saving: tuple[float, int], seed: int
) -> None:
    workload = request.workload()
    policy = StreamPolicy(margin_slots=margin, tolerance=saving[0], max_count=saving[1])
    random = Random(seed)
    offsets = [random.randrange(5) for _ in request.jobs]
    bins = stream(workload, policy=policy, offsets=offsets)
    assert bins == stream(workload, policy=policy, offsets=offsets)
    plan = Plan(
        jobs=request.jobs,
        num_stages=request.num_stages,
        num_replicas=request.num_replicas,
        microbatch_tokens=request.microbatch_tokens,
        pad_multiple=request.pad_multiple,
        microbatches=workload.microbatches(bins),
        lower_bound_slots=lower_bounds(workload).slots(),
    )
    assert verify(plan) == ()


@pytest.mark.parametrize("num_adapters", [1, 300])
def test_one_adapter_and_hundreds(num_adapters: int) -> None:
    jobs = jobs_of([[[1 + adapter % 7, 3], [2]] for adapter in range(num_adapters)])
    workload = workload_of(jobs, microbatch_tokens=16, num_stages=4)
    bins = stream(workload, policy=EAGER)
    assert workload.num_slots(bins) == lower_bounds(workload).slots()
