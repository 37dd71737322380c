"""Which adapters share microbatches. A grouping is a function of (workload, the adapters still training).

Groups are packed step by step one after another, so a step of one group hides the wait of another; they are formed
anew whenever an adapter has finished.
"""

from collections.abc import Callable, Sequence
from statistics import fmean, pstdev

from .workload import Workload

AdapterGroups = tuple[tuple[int, ...], ...]
Grouping = Callable[[Workload, Sequence[int]], AdapterGroups]


def singletons(workload: Workload, adapters: Sequence[int]) -> AdapterGroups:
    """Every adapter by itself: right where staggering cannot work anyway, or where nothing is to be gained."""
    del workload
    return tuple((adapter,) for adapter in adapters)


def head_tail(workload: Workload, adapters: Sequence[int]) -> AdapterGroups:
    """The published pairing (arXiv 2510.00206): longest mean length with shortest, where the rest fills the wait.

    A batch is taken to need ceil(size * (mean - sigma / 4) / capacity) microbatches at least. Where all but the largest
    adapter together do not make num_stages - 1 of them, no adapter is paired.
    """
    means, least = {}, {}
    for adapter in adapters:
        chain = workload.chains[adapter]
        lengths = [workload.sizes[item] for items in chain for item in items]
        means[adapter] = fmean(lengths)
        light = means[adapter] - pstdev(lengths) / 4
        least[adapter] = max(1, -(-int(fmean(len(items) for items in chain) * light) // workload.capacity))
    needed = workload.num_stages - 1
    total = sum(least.values())
    if total - max(least.values(), default=0) < needed:
        return singletons(workload, adapters)
    queue = sorted(adapters, key=lambda adapter: (-means[adapter], adapter))
    groups: list[tuple[int, ...]] = []
    while queue:
        head = queue.pop(0)
        if queue and total - least[head] - least[queue[-1]] >= needed:
            groups.append((head, queue.pop()))
        else:
            groups.append((head,))
    return tuple(groups)


def balanced(num_groups: int) -> Grouping:
    """A grouping into `num_groups` groups of about equal tokens per step, the heaviest adapters spread first."""

    def grouping(workload: Workload, adapters: Sequence[int]) -> AdapterGroups:
        weight = {
            adapter: sum(workload.sizes[item] for items in workload.chains[adapter] for item in items)
            / len(workload.chains[adapter])
            for adapter in adapters
        }
        members: list[list[int]] = [[] for _ in range(min(num_groups, len(adapters)))]
        loads = [0.0] * len(members)
        for adapter in sorted(adapters, key=lambda adapter: (-weight[adapter], adapter)):
            place = loads.index(min(loads))
            members[place].append(adapter)
            loads[place] += weight[adapter]
        return tuple(tuple(sorted(chosen)) for chosen in members)

    return grouping
