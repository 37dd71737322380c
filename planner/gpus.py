"""Which workers of a run share a GPU, and what each may take of it: for the placement, `estimate` and `train` alike."""

from collections import Counter
from dataclasses import dataclass


def gpu_of(place: int, *, num_workers: int, num_gpus: int) -> int:
    """The GPU of the worker at `place`: one each, or, where there are fewer GPUs, neighbours share one."""
    return place if num_workers <= num_gpus else place * num_gpus // num_workers


def workers_on_gpus(num_workers: int, *, num_gpus: int) -> Counter[int]:
    """How many workers each GPU has, of those that have any."""
    return Counter(gpu_of(place, num_workers=num_workers, num_gpus=num_gpus) for place in range(num_workers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """The GPUs that a run's workers are laid on."""

    free_bytes: tuple[float, ...]
    """Of each GPU, for one after another of the workers."""
    one_each: bool = False
    """There are as many like the first as there are workers."""

    def num_sharing(self, num_workers: int) -> int:
        """Workers on the GPU that has most of them."""
        return 1 if self.one_each else max(self._workers(num_workers).values())

    def share_bytes(self, num_workers: int) -> float:
        """What every worker may take, though it have the worst place."""
        if self.one_each:
            return self.free_bytes[0]
        return min(self.free_bytes[gpu] / sharing for gpu, sharing in self._workers(num_workers).items())

    def num_idle(self, num_workers: int) -> int:
        """GPUs that no worker is laid on."""
        return 0 if self.one_each else max(0, len(self.free_bytes) - num_workers)

    def most_stages(self, num_replicas: int) -> int | None:
        """So many stages have a GPU each; at least 1, and None where every worker has one anyhow."""
        return None if self.one_each else max(1, len(self.free_bytes) // num_replicas)

    def _workers(self, num_workers: int) -> Counter[int]:
        return workers_on_gpus(num_workers, num_gpus=len(self.free_bytes))


def one_gpu_each(free_bytes: float = float("inf")) -> Gpus:
    """For every worker a GPU of its own that has so much; without a limit where nobody counts."""
    return Gpus(free_bytes=(free_bytes,), one_each=True)
