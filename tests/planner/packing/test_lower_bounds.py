"""Bounds by hand, and never above the truth."""

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex.planner.packing.exact import fewest_slots
from loraplex.planner.packing.lower_bounds import (
    batch_bounds,
    chain_tails,
    lower_bounds,
    martello_toth_bound,
)
from loraplex.planner.packing.workload import workload_of
from loraplex.tests.random_jobs import Request, jobs_of, requests


def fewest_bins(sizes: list[int], *, capacity: int) -> int:
    """By trying every assignment that opens bins in order."""
    best = len(sizes)
    loads: list[int] = []

    def place(position: int) -> None:
        nonlocal best
        if len(loads) >= best:
            return
        if position == len(sizes):
            best = len(loads)
            return
        for number in range(len(loads)):
            if loads[number] + sizes[position] <= capacity:
                loads[number] += sizes[position]
                place(position + 1)
                loads[number] -= sizes[position]
        loads.append(sizes[position])
        place(position + 1)
        loads.pop()

    place(0)
    return best


def test_large_items_sit_alone() -> None:
    assert martello_toth_bound([6, 6, 6], capacity=10) == 3  # volume says 2
    assert martello_toth_bound([7, 7, 4, 4], capacity=10) == 3
    assert martello_toth_bound([], capacity=10) == 0


@given(st.lists(st.integers(1, 20), max_size=7), st.sampled_from((20, 21)))
def test_l2_lies_between_volume_and_the_truth(sizes: list[int], capacity: int) -> None:
    bound = martello_toth_bound(sizes, capacity=capacity)
    assert -(-sum(sizes) // capacity) <= bound <= (fewest_bins(sizes, capacity=capacity) if sizes else 0)


def test_a_chain_waits_between_its_steps() -> None:
    assert chain_tails([2, 1, 1], gap_slots=4) == [10, 5, 1, 0]


def test_four_small_chains_share_the_first_round() -> None:
    # Each step fills 6 of 10: no two share a slot, so the last adapter starts in slot 3 and its chain takes 5 more.
    workload = workload_of(jobs_of([[[6], [6]]] * 4), microbatch_tokens=10, num_stages=4)
    found = lower_bounds(workload)
    assert (found.volume, found.martello_toth, found.chain, found.window) == (5, 8, 5, 8)
    assert found.slots() == 8


def test_replicas_share_a_slot() -> None:
    workload = workload_of(jobs_of([[[6, 6, 6]]]), microbatch_tokens=10, num_stages=1, num_replicas=2)
    assert lower_bounds(workload).slots() == 2


@settings(max_examples=150)
@given(requests(max_adapters=3, max_batches=3, max_samples=3))
def test_no_plan_takes_fewer_slots_than_the_bound(request: Request) -> None:
    workload = request.workload()
    if len(workload.sizes) <= 9:
        bounds = batch_bounds(workload)
        bins, proved = fewest_slots(workload, bounds=bounds, at_least=1, below=10**6, max_nodes=20_000)
        assert proved
        assert bins is not None
        assert lower_bounds(workload, bounds=bounds).slots() <= workload.num_slots(bins)


@settings(max_examples=60)
@given(requests(max_adapters=2, max_batches=2, max_samples=2))
def test_the_exact_search_equals_trying_every_placement(request: Request) -> None:
    workload = request.workload()
    if len(workload.sizes) > 5:
        return
    bins, proved = fewest_slots(workload, bounds=batch_bounds(workload), at_least=1, below=100, max_nodes=10**5)
    assert proved
    assert bins is not None
    fewest = workload.num_slots(bins)
    gap = workload.gap_slots
    horizon = fewest - 1
    for slotting in product(range(horizon), repeat=len(workload.sizes)):
        shares: dict[tuple[int, int], int] = {}
        for item, slot in enumerate(slotting):
            key = (slot, workload.samples[item].adapter)
            shares[key] = shares.get(key, 0) + workload.sizes[item]
        loads = [0] * horizon
        for (slot, _), tokens in shares.items():
            loads[slot] += workload.padded(tokens)
        spaced = all(
            min(slotting[item] for item in chain[step + 1]) - max(slotting[item] for item in chain[step]) >= gap
            for chain in workload.chains
            for step in range(len(chain) - 1)
        )
        assert not (spaced and max(loads) <= workload.capacity), slotting
