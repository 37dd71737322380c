"""The YAML file of a sweep: a job, a pipeline, a cluster and a profile, in which any value may be a list or a range.

```yaml
job: {file: jobs.yaml, adapters: {chat: {global_batch_size: [8, 16]}}}   # a job file, with fields set anew; or
# job: {adapters: [{lengths: gsm8k, num_samples: 256, global_batch_size: 16}]}   # lengths of a known data set or a CSV
# plan: plan.json                                # or a plan as it is (then nothing that planning depends on may vary)
pipeline: {stages: [2, 4, 8], schedule: [1f1b, gpipe], microbatch_tokens: {range: [4096, 16384, 4096]}}
cluster: {jitter: [0, 0.05], network: {latency_ms: 0.03, gb_per_s: [12.5, 50]}}
profile: {name: llama-70b-h100-published, link: {latency_ms: [0, 0.1]}}          # or only a name, a file, or a list
sample: 500            # that many combinations, drawn with `seed`, instead of all
```
`pipeline.planned_for` is the profile that the planner weighs plans by (as `loraplex plan --profile`). Without it a job
file is planned as `loraplex train` does where nothing was measured, lengths by slots (all microbatches count alike, as
with `planned_for: null`), and one plan serves all values of `profile`.
A list of values is a choice; a list of tables (adapters, slow, pauses) is a list. A range is [first, last] or
[first, last, step], both ends included.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from pathlib import Path
from random import Random
from typing import Any

from ..planner.errors import JobError
from ..planner.inputs.yaml_lines import read_plain_yaml
from .errors import SimulationError

MOST_POINTS = 100_000
_SECTIONS = ("job", "plan", "pipeline", "cluster", "profile", "sample", "seed")
Place = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One field that varies."""

    place: Place
    values: tuple[Any, ...]

    def name(self) -> str:
        """The field in words, such as pipeline.stages."""
        return ".".join(str(part) for part in self.place)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """All points of a sweep file."""

    path: Path
    base: Mapping[str, Any]
    axes: tuple[Axis, ...]
    sample: int | None
    seed: int

    def num_combinations(self) -> int:
        """Points if nothing is sampled."""
        return prod(len(axis.values) for axis in self.axes)

    def points(self) -> Iterator["Point"]:
        """All points, the last axis varying fastest, or the sampled ones."""
        total = self.num_combinations()
        numbers: Sequence[int] = range(total)
        if self.sample is not None and self.sample < total:
            numbers = sorted(Random(self.seed).sample(range(total), self.sample))
        for number in numbers:
            yield self._point(number)

    def _point(self, number: int) -> "Point":
        chosen = {}
        content = deepcopy(dict(self.base))
        for axis in reversed(self.axes):
            number, choice = divmod(number, len(axis.values))
            chosen[axis.name()] = axis.values[choice]
            holder: Any = content
            for part in axis.place[:-1]:
                holder = holder[part]
            holder[axis.place[-1]] = deepcopy(axis.values[choice])
        return Point(content=content, chosen={axis.name(): chosen[axis.name()] for axis in self.axes})


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One combination."""

    content: Mapping[str, Any]
    """The sweep file with every choice made."""
    chosen: Mapping[str, Any]
    """The value of each axis, by its name."""


def load_sweep(path: Path | str) -> Sweep:
    """Read a sweep file. Raises SimulationError naming the file, the field and its value."""
    try:
        content = read_plain_yaml(Path(path), mend="give a sweep file")
    except JobError as error:
        raise SimulationError(str(error)) from error
    if not isinstance(content, dict):
        raise SimulationError(f"{path}: must be a table with {', '.join(_SECTIONS)}")
    for name in content:
        if name not in _SECTIONS:
            raise SimulationError(f"{path}: {name} is unknown; it may hold {', '.join(_SECTIONS)}")
    if ("job" in content) == ("plan" in content):
        raise SimulationError(f"{path}: needs either a job or a plan, and not both")
    if "profile" not in content:
        raise SimulationError(f"{path}: profile is missing; give a name or a file")
    sample, seed = content.pop("sample", None), content.pop("seed", 0)
    for name, value, least in (("sample", sample, 1), ("seed", seed, 0)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise SimulationError(f"{path}: {name}={value!r} must be a whole number from {least} on")
    sweep = Sweep(
        path=Path(path), base=content, axes=tuple(_axes(content, (), where=str(path))), sample=sample, seed=seed
    )
    wanted = min(sweep.num_combinations(), sample or sweep.num_combinations())
    if wanted > MOST_POINTS:
        raise SimulationError(
            f"{path}: {wanted:,} points ({' x '.join(str(len(axis.values)) for axis in sweep.axes)}) exceed the "
            f"{MOST_POINTS:,} that a sweep may have; vary less, or draw some of them with sample: N"
        )
    return sweep


def _axes(content: Any, place: Place, *, where: str) -> Iterator[Axis]:
    if isinstance(content, dict) and set(content) == {"range"}:
        yield Axis(place=place, values=_range(content["range"], f"{where}: {'.'.join(map(str, place))}"))
    elif isinstance(content, dict):
        for name, held in content.items():
            yield from _axes(held, (*place, name), where=where)
    elif isinstance(content, list) and content and all(isinstance(held, dict) for held in content):
        for number, held in enumerate(content):
            yield from _axes(held, (*place, number), where=where)
    elif isinstance(content, list):
        if not content:
            raise SimulationError(f"{where}: {'.'.join(map(str, place))} is an empty list; give it a value")
        texts = [json.dumps(held, sort_keys=True, default=str) for held in content]
        if len(set(texts)) < len(texts):
            raise SimulationError(f"{where}: {'.'.join(map(str, place))}={content} holds a value twice; drop one")
        yield Axis(place=place, values=tuple(content))


def _range(given: Any, where: str) -> tuple[Any, ...]:
    numbers = given if isinstance(given, list) else []
    plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers)
    if len(numbers) not in (2, 3) or not plain:
        raise SimulationError(f"{where}.range={given!r} must be [first, last] or [first, last, step] in numbers")
    first, last, step = (*numbers, 1)[:3]
    if not step > 0 or not last >= first or not (last - first) / step < MOST_POINTS:
        raise SimulationError(
            f"{where}.range={given!r} must rise from first to last by a step above 0, in fewer than {MOST_POINTS:,} "
            "values"
        )
    count = int((last - first) / step + 1e-9) + 1
    return tuple(first + number * step for number in range(count))
