"""Exact fills against all subsets."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from loraplex.planner.packing.subset_sum import fewest_subset, fullest_subset

SIZES = st.lists(st.integers(1, 30), min_size=0, max_size=9)


def all_sums(sizes: list[int], *, room: int, max_count: int = 99) -> dict[int, int]:
    """Reachable sums within the room, each with the fewest items that make it."""
    found: dict[int, int] = {}
    for count in range(min(max_count, len(sizes)) + 1):
        for chosen in combinations(sizes, count):
            if sum(chosen) <= room:
                found.setdefault(sum(chosen), count)
    return found


def test_the_fullest_subset_prefers_early_items() -> None:
    sizes = [5, 4, 3, 2]
    assert sorted(fullest_subset([0, 1, 2, 3], sizes=sizes, room=9)) == [0, 1]
    assert sorted(fullest_subset([3, 2, 1, 0], sizes=sizes, room=9)) == [1, 2, 3]
    assert fullest_subset([0, 1], sizes=sizes, room=20) == [0, 1]
    assert fullest_subset([0], sizes=sizes, room=4) == []


@given(SIZES, st.integers(0, 60))
def test_no_subset_is_fuller(sizes: list[int], room: int) -> None:
    chosen = fullest_subset(range(len(sizes)), sizes=sizes, room=room)
    assert len(set(chosen)) == len(chosen)
    assert sum(sizes[item] for item in chosen) == max(all_sums(sizes, room=room))


@given(SIZES, st.integers(1, 60), st.integers(0, 10), st.integers(1, 4))
def test_the_fewest_items_within_a_tolerance(sizes: list[int], room: int, tolerance: int, max_count: int) -> None:
    chosen = fewest_subset(range(len(sizes)), sizes=sizes, room=room, tolerance=tolerance, max_count=max_count)
    counts = [
        count
        for total, count in all_sums(sizes, room=room, max_count=max_count).items()
        if total >= room - tolerance and count
    ]
    if chosen is None:
        assert counts == []
    else:
        assert len(set(chosen)) == len(chosen) == min(counts)
        assert room - tolerance <= sum(sizes[item] for item in chosen) <= room
