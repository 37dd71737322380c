"""The planner of LoRAFusion (arXiv 2510.00206), from its description: pairs, greedy bins, a merge pass, dummies."""

from .packing.grouping import head_tail
from .packing.pack_greedy import Bins, Pack, first_fit_decreasing, occupied
from .packing.rounds import round_instances
from .packing.workload import Workload

DUMMY: list[int] = []
"""A microbatch of the published system that only keeps dependents apart."""


def published_bins(workload: Workload, *, pack: Pack = first_fit_decreasing) -> Bins:
    """What the published planner enters, before it inserts dummies."""
    rounds = [pack(workload, items) for _, _, items in round_instances(workload, grouping=head_tail)]
    return _merge_forward(workload, rounds)


def _merge_forward(workload: Workload, rounds: list[Bins]) -> Bins:
    """Take samples of the next round's last microbatch into this round's last one, smallest first.

    As published, only the receiver's next step is looked at; what this breaks on the giver's side costs dummies.
    """
    rounds = [[list(items) for items in packed] for packed in rounds]
    for here, packed in enumerate(rounds[:-1]):
        if not packed or not rounds[here + 1]:
            continue
        target, source = packed[-1], rounds[here + 1][-1]
        if not _next_is_far(workload, rounds, here=here):
            continue
        present = {workload.samples[item].adapter: workload.samples[item].global_batch for item in target}
        for item in sorted(source, key=lambda item: (workload.sizes[item], item)):
            sample = workload.samples[item]
            if present.get(sample.adapter, sample.global_batch) != sample.global_batch:
                continue
            if occupied(workload, [*target, item]) <= workload.capacity:
                target.append(item)
                source.remove(item)
        if not source:
            rounds[here + 1].pop()
    return [items for packed in rounds for items in packed]


def _next_is_far(workload: Workload, rounds: list[Bins], *, here: int) -> bool:
    """Whether the adapters of this round come again only num_stages microbatches later, one microbatch given up."""
    own = {workload.samples[item].adapter for item in rounds[here][-1]}
    distance = 0
    for packed in rounds[here + 1 :]:
        if any(workload.samples[item].adapter in own for items in packed for item in items):
            return distance - 1 >= workload.gap_slots - 1
        distance += len(packed)
    return True


def with_dummies(workload: Workload, bins: Bins) -> Bins:
    """Empty microbatches before each one that would come sooner than num_stages after what it depends on."""
    last: dict[tuple[int, int], int] = {}
    out: Bins = []
    for items in bins:
        steps = {(workload.samples[item].adapter, workload.samples[item].global_batch) for item in items}
        earliest = max((last.get((a, k - 1), -workload.gap_slots) + workload.gap_slots for a, k in steps), default=0)
        out += [DUMMY] * max(0, earliest - len(out))
        last.update(dict.fromkeys(steps, len(out)))
        out.append(items)
    return out
