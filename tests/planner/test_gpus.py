"""Which workers share a GPU, and what that leaves each of them."""

import pytest

from loraplex.planner.gpus import Gpus, gpu_of, one_gpu_each, workers_on_gpus


@pytest.mark.parametrize(
    ("num_workers", "num_gpus", "expected"),
    [(4, 4, [0, 1, 2, 3]), (2, 8, [0, 1]), (4, 1, [0, 0, 0, 0]), (4, 2, [0, 0, 1, 1]), (3, 2, [0, 0, 1])],
)
def test_a_gpu_each_or_neighbours_share(num_workers: int, num_gpus: int, expected: list[int]) -> None:
    found = [gpu_of(place, num_workers=num_workers, num_gpus=num_gpus) for place in range(num_workers)]
    assert found == expected
    on_gpus = workers_on_gpus(num_workers, num_gpus=num_gpus)
    assert dict(on_gpus) == {gpu: expected.count(gpu) for gpu in expected}


@pytest.mark.parametrize(
    ("free", "num_workers", "sharing", "share"),
    [
        ((80,), 1, 1, 80.0),
        ((80,), 4, 4, 20.0),
        ((80, 60), 1, 1, 80.0),
        ((80, 60), 2, 1, 60.0),
        # Two on the first, one on the second.
        ((80, 60), 3, 2, 40.0),
        ((80, 30), 3, 2, 30.0),
    ],
)
def test_workers_that_share_a_gpu_share_its_memory(
    free: tuple[float, ...], num_workers: int, sharing: int, share: float
) -> None:
    gpus = Gpus(free_bytes=free)
    assert (gpus.num_sharing(num_workers), gpus.share_bytes(num_workers)) == (sharing, share)


def test_where_each_has_its_own_there_is_no_sharing() -> None:
    gpus = one_gpu_each(80.0)
    assert (gpus.num_sharing(64), gpus.share_bytes(64), gpus.most_stages(1)) == (1, 80.0, None)
    assert one_gpu_each().share_bytes(2) == float("inf")
    assert [Gpus(free_bytes=(1, 1, 1, 1)).most_stages(replicas) for replicas in (1, 2, 3, 8)] == [4, 2, 1, 1]
