"""Streaming: slot by slot, every adapter whose global batch is open puts samples in, longest remaining chain first."""

from .lower_bounds import batch_bounds
from .workload import Workload


def stream(workload: Workload) -> list[list[int]]:
    """Bins of items in order of entry, `num_replicas` a slot."""
    bounds = batch_bounds(workload)
    step_of = [0] * len(workload.chains)
    ready = [0] * len(workload.chains)
    waiting = [_largest_first(workload, chain[0]) for chain in workload.chains]
    tails = [_tails(chain, num_stages=workload.num_stages) for chain in bounds]
    bins: list[list[int]] = []
    slot = 0
    while True:
        left = [adapter for adapter, items in enumerate(waiting) if items]
        if not left:
            return bins
        slot = max(slot, min(ready[adapter] for adapter in left))
        open_adapters = [adapter for adapter in left if ready[adapter] <= slot]
        open_adapters.sort(key=lambda adapter: (-tails[adapter][step_of[adapter]], adapter))
        for _ in range(workload.num_replicas):
            bins.append(_fill(workload, waiting=waiting, adapters=open_adapters))
        for adapter in open_adapters:
            if not waiting[adapter]:
                step_of[adapter] += 1
                ready[adapter] = slot + workload.num_stages
                if step_of[adapter] < len(workload.chains[adapter]):
                    waiting[adapter] = _largest_first(workload, workload.chains[adapter][step_of[adapter]])
        slot += 1


def _largest_first(workload: Workload, items: tuple[int, ...]) -> list[int]:
    return sorted(items, key=lambda item: (-workload.sizes[item], item))


def _tails(bounds: tuple[int, ...], *, num_stages: int) -> list[int]:
    tails = [0] * (len(bounds) + 1)
    for step in reversed(range(len(bounds))):
        tails[step] = tails[step + 1] + bounds[step] + num_stages - 1
    return tails


def _fill(workload: Workload, *, waiting: list[list[int]], adapters: list[int]) -> list[int]:
    chosen: list[int] = []
    used = 0
    for adapter in adapters:
        share = 0
        kept = []
        for item in waiting[adapter]:
            grown = share + workload.sizes[item]
            if used + workload.padded(grown) <= workload.capacity:
                share = grown
                chosen.append(item)
            else:
                kept.append(item)
        used += workload.padded(share)
        waiting[adapter] = kept
    return chosen
