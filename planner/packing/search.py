"""The search for the best plan: recipes are tried in a fixed order, and the best bins by score are kept.

Nothing here depends on how fast the machine is, except where the time limit or Ctrl-C strikes, and that is noted.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from ...traces.counted import counted
from .candidates import Recipe, follow, neighbour, num_staggers, random_staggers
from .lower_bounds import LowerBounds
from .objective import Score
from .pack_greedy import Bins
from .parallel import side_by_side
from .workload import Workload

Progress = Callable[[str, float], None]
"""Told (what is being done, current gap over the lower bound)."""
PARALLEL_ITEMS = 20_000
"""Below this, starting processes costs more than a few sweeps save (2 cores, 2026-11-24)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Bins that a recipe led to."""

    score: Score
    bins: Bins
    name: str
    recipe: Recipe | None = None
    """None where the bins came from elsewhere."""


@dataclass(slots=True, kw_only=True)
class Search:
    """Everything a search needs to know, and the candidates it kept, best first."""

    workload: Workload
    bounds: Sequence[Sequence[int]]
    lower: LowerBounds
    score_of: Callable[[Bins], Score]
    is_best_possible: Callable[[Score], bool]
    end_s: float
    workers: int = 1
    backend: str = "loky"
    progress: Progress | None = None
    keep: int = 6
    found: list[Found] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_tried: int = 0

    def try_all(self, recipes: Sequence[Recipe]) -> Found | None:
        """Try recipes in order until one cannot be beaten, the time is up, or Ctrl-C. Returns the last one tried."""
        last = None
        if self.stopped():
            return last
        try:
            for recipe, bins in zip(recipes, self._results(recipes), strict=True):
                self.num_tried += 1
                last = Found(score=self.score_of(bins), bins=bins, name=recipe.strategy, recipe=recipe)
                self.add(last)
                if self.stopped():
                    break
        except KeyboardInterrupt:
            if not self.found:
                raise
            self.notes.append(f"interrupted after {counted(self.num_tried, 'candidate')}; the best so far was kept")
        return last

    def improve(self, *, count: int) -> None:
        """Local search from the best sweep: stagger one adapter otherwise, go there unless it is worse, again."""
        sweeps = [found for found in self.found if found.recipe is not None and found.recipe.policy is not None]
        if not sweeps:
            return
        here = sweeps[0]
        for seed in range(count):
            assert here.recipe is not None
            recipe = neighbour(
                here.recipe, seed=seed, num_adapters=len(self.workload.chains), num_slots=self.lower.slots()
            )
            there = self.try_all([recipe])
            if there is None:
                return
            if there.score <= here.score:
                here = there

    def add(self, found: Found) -> None:
        """Keep a candidate if it is among the best; the earlier one wins a tie."""
        place = sum(kept.score <= found.score for kept in self.found)
        self.found.insert(place, found)
        del self.found[self.keep :]
        if self.progress is not None:
            slots = self.workload.num_slots(self.found[0].bins)
            self.progress(f"tried {found.name}", slots / self.lower.slots() - 1)

    def stopped(self) -> bool:
        """Whether more tries are pointless, too late or not wanted."""
        if self.found and self.is_best_possible(self.found[0].score):
            return True
        if self.found and not self.notes and perf_counter() > self.end_s:
            self.notes.append(f"time limit struck after {counted(self.num_tried, 'candidate')}")
        return bool(self.notes)

    def _results(self, recipes: Sequence[Recipe]) -> Iterator[Bins]:
        workers = self.workers if len(self.workload.sizes) >= PARALLEL_ITEMS else 1
        tasks = [(recipe, self.workload, self.bounds) for recipe in recipes]
        return side_by_side(_follow, tasks, workers=workers, backend=self.backend)


def search_staggers(search: Search, sweeps: Sequence[Recipe]) -> None:
    """Random staggers of the best sweeps, then local search around the best of all: half of the tries each."""
    count = num_staggers(search.lower.slots())
    best = best_recipes(search.found, count=3) or sweeps[:1]
    search.try_all(
        random_staggers(
            best,
            count=count // 2,
            num_adapters=len(search.workload.chains),
            num_slots=search.lower.slots(),
        )
    )
    search.improve(count=count - count // 2)


def best_recipes(found: Iterable[Found], *, count: int) -> tuple[Recipe, ...]:
    """The sweeps behind the best candidates, the first `count` different ones."""
    policies = dict.fromkeys(entry.recipe for entry in found if entry.recipe and entry.recipe.policy is not None)
    return tuple(policies)[:count]


def _follow(task: tuple[Recipe, Workload, Sequence[Sequence[int]]]) -> Bins:
    recipe, workload, bounds = task
    return follow(recipe, workload, bounds=bounds)
