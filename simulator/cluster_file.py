"""The YAML file of a Cluster.

```yaml
name: two nodes of four
gpus_per_node: 4
node_link: {latency_ms: 0.01, gb_per_s: 450}   # 10^9 bytes a second, each way
network: {latency_ms: 0.03, gb_per_s: 50, shared_by: node}
contention: true
memory_gib: 80
jitter: 0.05
seed: 1
slow: [{stage: 2, factor: 1.3}]
pauses: [{stage: 1, at_ms: 100, for_ms: 50}]
restart: {at_ms: 5000, for_ms: 800, checkpoint_every: 20}
```
Every field may be left out; see Cluster for what each means. The seed draws jitter, the GPU of a `slow` or `pauses`
entry without a stage, and, where `within_ms` stands for `at_ms`, the moment of a pause or restart from 0 to there.
"""

from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from ..planner.errors import JobError
from ..planner.inputs.yaml_lines import read_plain_yaml
from .cluster import Cluster, Link, Pause, Restart, Sharing, SlowWorker
from .errors import SimulationError

NotNegative = Annotated[FiniteFloat, Field(ge=0)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
Count = Annotated[int, Field(ge=0, strict=True)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Link(_Table):
    latency_ms: NotNegative = 0.0
    gb_per_s: Positive | None = None
    shared_by: Sharing | None = None

    def link(self) -> Link:
        return Link(
            latency_ms=self.latency_ms,
            bytes_per_ms=float("inf") if self.gb_per_s is None else self.gb_per_s * 1e6,
            shared_by=self.shared_by,
        )


class _Slow(_Table):
    stage: Count | None = None
    replica: Count = 0
    factor: Positive

    def slow(self, draw: np.random.Generator) -> SlowWorker:
        return SlowWorker(stage=self.stage, replica=self.replica, share=_share(self.stage, draw), factor=self.factor)


class _Event(_Table):
    at_ms: NotNegative | None = None
    within_ms: Positive | None = None
    for_ms: NotNegative

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.at_ms is None) == (self.within_ms is None):
            raise ValueError("needs one of at_ms (a moment) and within_ms (one drawn from 0 to there)")
        return self

    def moment_ms(self, draw: np.random.Generator) -> float:
        return float(draw.random() * self.within_ms) if self.at_ms is None and self.within_ms else self.at_ms or 0.0


class _Pause(_Event):
    stage: Count | None = None
    replica: Count = 0

    def pause(self, draw: np.random.Generator) -> Pause:
        share, at_ms = _share(self.stage, draw), self.moment_ms(draw)
        return Pause(stage=self.stage, replica=self.replica, share=share, at_ms=at_ms, for_ms=self.for_ms)


class _Restart(_Event):
    checkpoint_every: Annotated[int, Field(ge=1, strict=True)]

    def restart(self, draw: np.random.Generator) -> Restart:
        return Restart(at_ms=self.moment_ms(draw), for_ms=self.for_ms, checkpoint_every=self.checkpoint_every)


def _share(stage: int | None, draw: np.random.Generator) -> float:
    return float(draw.random()) if stage is None else 0.0


class _Cluster(_Table):
    name: str = "cluster"
    gpus_per_node: Annotated[int, Field(ge=1, strict=True)] | None = None
    node_link: _Link | None = None
    network: _Link | None = None
    contention: bool = False
    overlapped: bool | None = None
    memory_gib: Positive | None = None
    jitter: NotNegative = 0.0
    seed: Count = 0
    slow: tuple[_Slow, ...] = ()
    pauses: tuple[_Pause, ...] = ()
    restart: _Restart | None = None


def load_cluster(path: Path | str) -> Cluster:
    """Read a cluster file. Raises SimulationError naming the file, the field and its value."""
    try:
        content = read_plain_yaml(Path(path), mend="give a cluster file")
    except JobError as error:
        raise SimulationError(str(error)) from error
    return cluster_of(content if content is not None else {}, where=str(path))


def cluster_of(content: Any, *, where: str) -> Cluster:
    """A Cluster from the fields of its file. Raises SimulationError naming `where`, the field and its value."""
    try:
        given = _Cluster.model_validate(content)
    except ValidationError as error:
        raise SimulationError(f"{where}: {first_problem(error)}") from None
    return Cluster(
        name=given.name,
        gpus_per_node=given.gpus_per_node,
        node_link=None if given.node_link is None else given.node_link.link(),
        network=None if given.network is None else given.network.link(),
        contention=given.contention,
        overlapped=given.overlapped,
        memory_bytes=None if given.memory_gib is None else given.memory_gib * 1024**3,
        jitter=given.jitter,
        seed=given.seed,
        slow=tuple(entry.slow(_draw(given, 1, number)) for number, entry in enumerate(given.slow)),
        pauses=tuple(entry.pause(_draw(given, 2, number)) for number, entry in enumerate(given.pauses)),
        restart=None if given.restart is None else given.restart.restart(_draw(given, 3, 0)),
    )


def _draw(given: _Cluster, *place: int) -> np.random.Generator:
    # One stream an entry, so that another entry more or less leaves the draws of this one alone.
    return np.random.default_rng([given.seed, *place])


def first_problem(error: ValidationError) -> str:
    """The first thing a table breaks, as field, value, rule."""
    found = error.errors()[0]
    place = ".".join(str(part) for part in found["loc"]) or "the file"
    if found["type"] == "missing":
        return f"{place} is missing; give it"
    if found["type"] == "extra_forbidden":
        return f"{place} is unknown; remove it or mend its name"
    said = str(found["msg"]).removeprefix("Value error, ")
    return f"{place}={found['input']!r}: {said[:1].lower()}{said[1:]}"
