"""The search for the best plan: recipes are tried in a fixed order, and the best bins by score are kept.

Nothing here depends on how fast the machine is, except where the time limit or Ctrl-C strikes, and that is noted.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from .candidates import Recipe, follow
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

    def try_all(self, recipes: Sequence[Recipe]) -> None:
        """Try recipes in order until one is as good as can be, the time is up, or Ctrl-C."""
        if self.stopped():
            return
        done = 0
        try:
            for recipe, bins in zip(recipes, self._results(recipes), strict=True):
                done += 1
                self.add(Found(score=self.score_of(bins), bins=bins, name=recipe.strategy, recipe=recipe))
                if self.stopped():
                    return
                if perf_counter() > self.end_s and done < len(recipes):
                    self.notes.append(f"time limit struck after {done} of {len(recipes)} candidates")
                    return
        except KeyboardInterrupt:
            if not self.found:
                raise
            self.notes.append(f"interrupted after {done} of {len(recipes)} candidates; the best so far was kept")

    def add(self, found: Found) -> None:
        """Keep a candidate if it is among the best; the earlier one wins a tie."""
        place = sum(kept.score <= found.score for kept in self.found)
        self.found.insert(place, found)
        del self.found[self.keep :]
        if self.progress is not None:
            slots = self.workload.num_slots(self.found[0].bins)
            self.progress(f"tried {found.name}", slots / self.lower.slots() - 1)

    def stopped(self) -> bool:
        """Whether more tries are pointless or not wanted."""
        return bool(self.notes) or (bool(self.found) and self.is_best_possible(self.found[0].score))

    def _results(self, recipes: Sequence[Recipe]) -> Iterator[Bins]:
        workers = self.workers if len(self.workload.sizes) >= PARALLEL_ITEMS else 1
        tasks = [(recipe, self.workload, self.bounds, self.lower.slots()) for recipe in recipes]
        return side_by_side(_follow, tasks, workers=workers, backend=self.backend)


def best_recipes(found: Iterable[Found], *, count: int) -> tuple[Recipe, ...]:
    """The sweeps behind the best candidates, the first `count` different ones."""
    policies = dict.fromkeys(entry.recipe for entry in found if entry.recipe and entry.recipe.policy is not None)
    return tuple(policies)[:count]


def _follow(task: tuple[Recipe, Workload, Sequence[Sequence[int]], int]) -> Bins:
    recipe, workload, bounds, num_slots = task
    return follow(recipe, workload, bounds=bounds, num_slots=num_slots)
