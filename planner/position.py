"""How far a plan has come, told by the samples that are done: two plans of the same jobs may agree on it."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from .online import replan
from .plan import Microbatch, Plan
from .plan_file import plan_fingerprint

_BITS = 128


def positions(plan: Plan) -> tuple[str, ...]:
    """A digest for each slot: the same jobs, and the same samples done once the slot is through, whatever their order.

    Knows nothing of stages, replicas and microbatches.
    """
    bare = replace(
        plan,
        num_stages=1,
        num_replicas=1,
        microbatch_tokens=1,
        pad_multiple=1,
        schedule="",
        microbatches=(),
        strategy="",
        adapter_groups=(),
        lower_bound_slots=0,
        solver=(),
    )
    jobs, done, found = plan_fingerprint(bare), 0, []
    for slot in range(plan.num_slots()):
        for held in plan.slot_microbatches(slot):
            done += sum(_mark(sample.adapter, sample.index) for sample in held.samples)
        # A sum does not depend on the order of what is added.
        done %= 1 << _BITS
        found.append(hashlib.sha256(f"{jobs} {done:x}".encode()).hexdigest())
    return tuple(found)


def _mark(adapter: int, index: int) -> int:
    digest = hashlib.blake2b(f"{adapter} {index}".encode(), digest_size=_BITS // 8).digest()
    return int.from_bytes(digest, "little")


def continued(
    plan: Plan,
    *,
    slot: int,
    num_stages: int | None = None,
    num_replicas: int | None = None,
    microbatch_tokens: int | None = None,
    schedule: str | None = None,
) -> Plan:
    """The plan up to and with `slot` (-1: nothing), and what is left made anew for what is given: other stages, say.

    Microbatches that hold too much for another capacity are cut; where they are, and with another number of replicas,
    each takes a slot of its own. `positions` still agree. Raises PlanError on what cannot be.
    """
    num_replicas = num_replicas or plan.num_replicas
    capacity_tokens = microbatch_tokens or plan.microbatch_tokens
    done = plan.microbatches[: (slot + 1) * plan.num_replicas]
    rest = plan.microbatches[len(done) :]
    fits = all(held.padded_tokens(plan.pad_multiple) <= capacity_tokens for held in plan.microbatches)
    if num_replicas != plan.num_replicas or not fits:
        done, rest = (
            _one_a_slot(_cut(part, plan, capacity_tokens=capacity_tokens), num_replicas=num_replicas)
            for part in (done, rest)
        )
    moved = replace(
        plan,
        num_stages=num_stages or plan.num_stages,
        num_replicas=num_replicas,
        microbatch_tokens=capacity_tokens,
        schedule=schedule or plan.schedule,
        microbatches=(*done, *rest),
        lower_bound_slots=0,
        adapter_groups=(),
        solver=(),
    )
    return replan(moved, num_entered=len(done) // num_replicas)


def _cut(microbatches: Sequence[Microbatch], plan: Plan, *, capacity_tokens: int) -> Iterator[Microbatch]:
    # Whole samples in their order, as many as fit.
    for held in microbatches:
        piece = Microbatch()
        for sample in held.samples:
            more = Microbatch(samples=(*piece.samples, sample))
            if piece.samples and more.padded_tokens(plan.pad_multiple) > capacity_tokens:
                yield piece
                more = Microbatch(samples=(sample,))
            piece = more
        yield piece


def _one_a_slot(microbatches: Iterable[Microbatch], *, num_replicas: int) -> tuple[Microbatch, ...]:
    found: list[Microbatch] = []
    for held in microbatches:
        if held.samples:
            found += [held, *[Microbatch()] * (num_replicas - 1)]
    return tuple(found)
