"""Ways to make a plan, as data: a Recipe names a strategy and its settings, `follow` turns it into bins.

Recipes are plain values, so that they can be tried in any order and in other processes with the same result.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .grouping import Grouping, balanced, head_tail, singletons
from .merge import merge, rows
from .pack_greedy import Bins, pack_greedily
from .rounds import pack_rounds
from .stream import StreamPolicy, stream
from .workload import Workload

_NEVER, _ALWAYS = -(10**9), 10**9
_MARGINS = (16, _ALWAYS, 64, 4, _NEVER, 0)
"""Slack, in slots, below which adapters take all they can fill: never suits full slots, always suits long chains."""
_RESTART_SLOTS = 9_000
"""Slots that restarts may sweep together: about a third of a second (2 cores, loaded, 2026-11-24)."""
_MAX_RESTARTS = 48
_FEW_CANDIDATES = 60_000
"""Above this many samples one sweep takes seconds: only the most promising candidates are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One way to place all items."""

    strategy: str
    """stream or greedy."""
    policy: StreamPolicy | None = None
    seed: int = 0
    """Of the stagger of a restarted sweep; 0 for none."""
    due: tuple[int, ...] = ()
    """Slot each adapter should end by; empty for none."""
    ready: tuple[int, ...] = ()
    """First slot each adapter may enter; empty for 0."""
    waits: bool = True
    """False forgets the wait between steps: fuller slots, for when microbatches count and time does not."""
    num_groups: int = 0
    """Of greedy rounds; 0 pairs head with tail, -1 keeps adapters apart."""


def greedy_recipes(workload: Workload) -> tuple[Recipe, ...]:
    """Rounds packed greedily under several groupings; one where they take long."""
    counts = [count for count in (0, -1, 1, 2, 4) if count < 2 or count < len(workload.chains)]
    if len(workload.sizes) > _FEW_CANDIDATES:
        counts = [2]
    return tuple(Recipe(strategy="greedy", num_groups=count) for count in counts)


def stream_recipes(workload: Workload) -> tuple[Recipe, ...]:
    """Sweeps under several policies, the most promising first; fewer where one takes long."""
    num_items = len(workload.sizes)
    margins = _MARGINS if num_items <= 20_000 else _MARGINS[:2] if num_items <= _FEW_CANDIDATES else _MARGINS[:1]
    plain = [StreamPolicy(margin_slots=margin) for margin in margins]
    saving = [StreamPolicy(margin_slots=margin, tolerance=0.01, max_count=4) for margin in margins]
    few_fit = sum(workload.sizes) / num_items * 8 > workload.capacity
    policies = [policy for pair in zip(plain, saving, strict=True) for policy in pair] if few_fit else plain
    return tuple(Recipe(strategy="stream", policy=policy) for policy in policies)


def restart_recipes(recipes: Sequence[Recipe], *, num_slots: int, due: tuple[int, ...] = ()) -> tuple[Recipe, ...]:
    """The same sweeps with adapters staggered at random, from fixed seeds, as many as time allows."""
    count = min(_MAX_RESTARTS, _RESTART_SLOTS // max(1, num_slots))
    return tuple(replace(recipes[number % len(recipes)], seed=number + 1) for number in range(count if recipes else 0))


def follow(recipe: Recipe, workload: Workload, *, bounds: Sequence[Sequence[int]], num_slots: int) -> Bins:
    """Bins in order of entry, `num_replicas` a slot. `num_slots` is the lower bound, the scale of a stagger."""
    if not recipe.waits:
        workload = replace(workload, gap_slots=1)
    if recipe.strategy == "greedy":
        packed = pack_rounds(workload, grouping=grouping_of(recipe.num_groups), pack=pack_greedily)
        return rows(workload, merge(workload, packed))
    assert recipe.policy is not None
    return stream(
        workload,
        policy=recipe.policy,
        bounds=bounds,
        due=recipe.due or None,
        ready=recipe.ready or None,
        offsets=_offsets(recipe.seed, count=len(workload.chains), num_slots=num_slots) if recipe.seed else None,
    )


def grouping_of(num_groups: int) -> Grouping:
    """The grouping a recipe's number stands for."""
    if num_groups == 0:
        return head_tail
    return singletons if num_groups < 0 else balanced(num_groups)


def _offsets(seed: int, *, count: int, num_slots: int) -> list[int]:
    generator = random.Random(seed)
    most = int(generator.choice((0.02, 0.05, 0.1, 0.2)) * num_slots) + 1
    return [generator.randrange(most + 1) for _ in range(count)]
