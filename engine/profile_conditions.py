"""Microbatches to measure on a GPU: of all sizes and length mixes, few and many adapters, with and without dropout."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..planner.jobs import Job, LoraSettings, Sample
from ..planner.plan import Plan
from .profile_plan import numbered_plan

_SMALLEST = 64
"""Pipelines run single samples of 100 to 200 tokens. Of 18 sizes spread log-evenly from here on, ten are replayed as
CUDA graphs, some of which are over before they are launched, and three are small and not replayed."""
_ENDING = 64
"""Tokens of each adapter in the microbatches that end its global batch."""
_LONGEST = (128, 512, 2048, None)
"""Length that the samples of a microbatch are cut to; None: one sample."""
_ADAPTERS = (1, 2, 4, 8, 16)
MAX_ADAPTERS = max(_ADAPTERS)
_UPPER = 0.25
"""Part of the capacity from which on most microbatches of a plan lie."""
AGAIN = 3
"""Measurements of a smaller one in each round: it waits for the host, which scatters more than a GPU does."""
_JITTER = 1.3
"""Factor by which sizes may be out of order in a round."""
_TARGETS = (0.25, 0.5, 0.95)
"""Shares of a sample that are learned."""
NUM_CONDITIONS = 36
DEFAULT_LORAS = tuple(LoraSettings(lora_dropout=dropout) for dropout in (0.0, 0.1) for _ in range(8))
"""Sixteen adapters as users make them, r = 16 on all linears, half of them with dropout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One microbatch to measure."""

    number: int
    lengths: tuple[int, ...]
    adapters: tuple[int, ...]
    """Owner of each sample, in order."""
    target_share: float

    def num_tokens(self) -> int:
        """Of all its samples."""
        return sum(self.lengths)


def draw_conditions(
    loras: Sequence[LoraSettings], *, capacity_tokens: int, count: int = NUM_CONDITIONS, seed: int = 0
) -> tuple[Condition, ...]:
    """Half of them spread log-evenly over all sizes, half evenly over those from a quarter of the capacity on."""
    generator = np.random.default_rng(seed)
    smallest = min(_SMALLEST, capacity_tokens)
    spread = np.geomspace(smallest, capacity_tokens, (count + 1) // 2)
    upper = generator.uniform(_UPPER * capacity_tokens, capacity_tokens, count // 2)
    sizes = np.concatenate([spread, upper]).astype(int).tolist()
    pools = _pools(loras)
    # Each list of choices is gone through in an order of its own, so that all of them meet.
    longest, shares, numbers, chosen = (
        generator.permutation(np.arange(count) % num_choices).tolist()
        for num_choices in (len(_LONGEST), len(_TARGETS), len(_ADAPTERS), len(pools))
    )
    return tuple(
        _condition(
            place,
            size,
            _LONGEST[longest[place]],
            pools[chosen[place]][: _ADAPTERS[numbers[place]]],
            target_share=_TARGETS[shares[place]],
        )
        for place, size in enumerate(sizes)
    )


def _condition(number: int, size: int, longest: int | None, owners: Sequence[int], *, target_share: float) -> Condition:
    length = min(size, longest or size)
    whole, rest = divmod(size, length)
    # A rest of one token could not learn anything.
    lengths = (length,) * whole + ((rest,) if rest > 1 else ())
    used = min(len(owners), len(lengths))
    adapters = tuple(owners[place * used // len(lengths)] for place in range(len(lengths)))
    return Condition(number=number, lengths=lengths, adapters=adapters, target_share=target_share)


def _pools(loras: Sequence[LoraSettings]) -> tuple[tuple[int, ...], ...]:
    # Adapters without dropout, with it, and both in turn.
    dry = tuple(place for place, lora in enumerate(loras) if not lora.lora_dropout)
    wet = tuple(place for place, lora in enumerate(loras) if lora.lora_dropout)
    both = tuple(place for pair in zip(dry, wet, strict=False) for place in pair)
    return tuple(pool for pool in (dry, wet, both) if pool)


def conditions_plan(conditions: Sequence[Condition], loras: Sequence[LoraSettings], *, num_stages: int) -> Plan:
    """A microbatch for each condition, in their order, and behind them two that are equal and small and hold everybody.

    All global batches end with the last, so that no condition pays for the end of one; the last two tell what it costs.
    """
    capacity = max(sum(condition.lengths) for condition in conditions)
    everybody = tuple(range(len(loras)))
    short = Condition(
        number=-1,
        lengths=(max(2, min(_ENDING, capacity // len(loras))),) * len(loras),
        adapters=everybody,
        target_share=0.5,
    )
    measured = (*conditions, short, short)
    jobs = [Job(name=f"measured-{place}", global_batches=(), lora=lora, seed=place) for place, lora in enumerate(loras)]
    drawn = [
        [
            Sample(
                adapter=adapter,
                global_batch=0,
                index=0,
                num_tokens=length,
                num_target_tokens=max(1, min(length - 1, round(length * condition.target_share))),
            )
            for length, adapter in zip(condition.lengths, condition.adapters, strict=True)
        ]
        for condition in measured
    ]
    plan = numbered_plan(
        jobs,
        drawn,
        num_stages=num_stages,
        capacity_tokens=max(capacity, sum(short.lengths)),
        batch_microbatches=len(measured),
    )
    # Rates are so small that random gradients over many rounds keep the weights sane.
    gentle = tuple(replace(job, optimizer=replace(job.optimizer, learning_rate=1e-6)) for job in plan.jobs)
    return replace(plan, jobs=gentle)


def small_and_large(conditions: Sequence[Condition]) -> tuple[tuple[Condition, ...], tuple[Condition, ...]]:
    """Those below a quarter of the largest, and the others, each in their order.

    They are measured apart. A small microbatch waits for the host, and behind a large one, where the host is ahead, it
    would seem to be launched in no time. A large one waits for the GPU, which likely lowers its clock in the course of
    seconds of work: between small ones it was measured 6 % faster than in training (docs/log.md).
    """
    bound = _UPPER * max(map(Condition.num_tokens, conditions), default=0)
    small = tuple(condition for condition in conditions if condition.num_tokens() < bound)
    return small, tuple(condition for condition in conditions if condition.num_tokens() >= bound)


def every_so_many(conditions: Sequence[Condition], *, every: int, large: bool) -> tuple[Condition, ...]:
    """The large or the small ones among every so many.

    They are told apart among all, so that a microbatch is a small one for every kind of stage or for none.
    """
    own = set(small_and_large(conditions)[large])
    return tuple(condition for condition in conditions[::every] if condition in own)


def round_order(conditions: Sequence[Condition], generator: np.random.Generator, *, again: int = 1) -> list[int]:
    """Places of the conditions in the order of one round, each `again` times: by size, about, so that neighbours change
    from round to round."""
    places = np.repeat(np.arange(len(conditions)), again)
    sizes = np.array([condition.num_tokens() for condition in conditions])[places]
    keys = np.log(sizes) + np.log(_JITTER) * generator.uniform(-0.5, 0.5, len(places))
    return [int(place) for place in places[np.argsort(keys)]]
