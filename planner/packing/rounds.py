"""Plans made of rounds: step by step, adapter group by adapter group, each (group, step) packed by itself."""

from collections.abc import Iterator

from .grouping import AdapterGroups, Grouping
from .pack_greedy import Bins, Pack
from .workload import Workload


def round_instances(workload: Workload, *, grouping: Grouping) -> Iterator[tuple[int, tuple[int, ...], list[int]]]:
    """(step, adapter group, items) in the order they enter; groups are re-formed when adapters have finished."""
    adapters: list[int] = []
    groups: AdapterGroups = ()
    for step in range(max(len(chain) for chain in workload.chains)):
        active = [adapter for adapter, chain in enumerate(workload.chains) if step < len(chain)]
        if active != adapters:
            adapters, groups = active, grouping(workload, active)
        for members in groups:
            yield step, members, [item for adapter in members for item in workload.chains[adapter][step]]


def pack_rounds(workload: Workload, *, grouping: Grouping, pack: Pack) -> Bins:
    """Bins of all rounds in order of entry, whole slots of `num_replicas` bins each."""
    bins: Bins = []
    for _, _, items in round_instances(workload, grouping=grouping):
        packed = pack(workload, items)
        bins += packed + [[]] * (-len(packed) % workload.num_replicas)
    return bins
