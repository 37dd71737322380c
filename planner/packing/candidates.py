"""Ways to make a plan, as data: a Recipe names a strategy and its settings, `follow` turns it into bins.

Recipes are plain values, so that they can be tried in any order and in other processes with the same result.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..published_planner import published_bins
from .grouping import Grouping, balanced, head_tail, singletons
from .merge import merge, rows
from .pack_greedy import Bins, pack_greedily
from .rounds import pack_rounds
from .stream import StreamPolicy, stream
from .workload import Workload

_NEVER, _ALWAYS = -(10**9), 10**9
_MARGINS = (16, _ALWAYS, 64, 4, _NEVER, 0)
"""Slack, in slots, below which adapters take all they can fill: never suits full slots, always suits long chains."""
_STAGGER_SLOTS = 9_000
"""Slots that staggered sweeps may take together: about a third of a second (2 cores, loaded, 2026-11-24)."""
_MAX_STAGGERS = 48
_FEW_CANDIDATES = 60_000
"""Above this many samples one sweep takes seconds: only the most promising candidates are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One way to place all items."""

    strategy: str
    """stream or greedy."""
    policy: StreamPolicy | None = None
    offsets: tuple[int, ...] = ()
    """Slots added to what each adapter is due by when adapters are ranked: the stagger; empty for none."""
    due: tuple[int, ...] = ()
    """Slot each adapter should end by; empty for none."""
    ready: tuple[int, ...] = ()
    """First slot each adapter may enter; empty for 0."""
    waits: bool = True
    """False forgets the wait between steps: fuller slots, for when microbatches count and time does not."""
    num_groups: int = 0
    """Of greedy rounds; 0 pairs head with tail, -1 keeps adapters apart."""
    as_published: bool = False
    """Greedy rounds packed and merged as the published planner does, without its dummies."""


def greedy_recipes(workload: Workload) -> tuple[Recipe, ...]:
    """Rounds packed greedily under several groupings; one where they take long."""
    counts = [count for count in (0, -1, 1, 2, 4) if count < 2 or count < len(workload.chains)]
    if len(workload.sizes) > _FEW_CANDIDATES:
        counts = [2]
    rounds = tuple(Recipe(strategy="greedy", num_groups=count) for count in counts)
    published = Recipe(strategy="greedy", as_published=True)
    return rounds if len(workload.sizes) > _FEW_CANDIDATES else (*rounds, published)


def stream_recipes(workload: Workload) -> tuple[Recipe, ...]:
    """Sweeps under several policies, the most promising first; fewer where one takes long."""
    num_items = len(workload.sizes)
    margins = _MARGINS if num_items <= 20_000 else _MARGINS[:2] if num_items <= _FEW_CANDIDATES else _MARGINS[:1]
    plain = [StreamPolicy(margin_slots=margin) for margin in margins]
    saving = [StreamPolicy(margin_slots=margin, tolerance=0.05, max_count=3) for margin in margins]
    few_fit = sum(workload.sizes) / num_items * 8 > workload.capacity
    policies = [policy for pair in zip(plain, saving, strict=True) for policy in pair] if few_fit else plain
    return tuple(Recipe(strategy="stream", policy=policy) for policy in policies)


def num_staggers(num_slots: int) -> int:
    """How many staggered sweeps of this many slots are worth their time."""
    return min(_MAX_STAGGERS, _STAGGER_SLOTS // max(1, num_slots))


def random_staggers(recipes: Sequence[Recipe], *, count: int, num_adapters: int, num_slots: int) -> tuple[Recipe, ...]:
    """The same sweeps with adapters staggered at random, from fixed seeds."""
    staggered = []
    for number in range(count):
        generator = random.Random(number)
        most = _stagger_range(generator, num_slots)
        offsets = tuple(generator.randrange(most + 1) for _ in range(num_adapters))
        staggered.append(replace(recipes[number % len(recipes)], offsets=offsets))
    return tuple(staggered)


def neighbour(recipe: Recipe, *, seed: int, num_adapters: int, num_slots: int) -> Recipe:
    """The same sweep with one adapter staggered otherwise: a step of local search."""
    generator = random.Random(f"neighbour {seed}")
    most = _stagger_range(generator, num_slots)
    offsets = list(recipe.offsets or (0,) * num_adapters)
    offsets[generator.randrange(num_adapters)] += generator.randint(-most, most)
    return replace(recipe, offsets=tuple(offsets))


def _stagger_range(generator: random.Random, num_slots: int) -> int:
    return int(generator.choice((0.02, 0.05, 0.1, 0.2)) * num_slots) + 1


def follow(recipe: Recipe, workload: Workload, *, bounds: Sequence[Sequence[int]]) -> Bins:
    """Bins in order of entry, `num_replicas` a slot."""
    if not recipe.waits:
        workload = replace(workload, gap_slots=1)
    if recipe.as_published:
        return rows(workload, published_bins(workload))
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
        offsets=recipe.offsets or None,
    )


def grouping_of(num_groups: int) -> Grouping:
    """The grouping a recipe's number stands for."""
    if num_groups == 0:
        return head_tail
    return singletons if num_groups < 0 else balanced(num_groups)
