"""Cluster: the devices a run would meet. Links inside and between nodes, slow GPUs, jitter, pauses, a restart.

Devices are numbered replica after replica, stage after stage, and fill one node after another.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..planner.costing import ProgramCosts
from ..planner.graph import ProgramGraph
from ..traces.costs import LinkCosts
from ..traces.counted import counted
from .errors import SimulationError
from .replay import Pauses

Sharing = Literal["gpu", "node", "nobody"]
"""Whose messages queue for a link: those of one GPU (its port), of one node (its card or bus), or none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One kind of connection."""

    latency_ms: float = 0.0
    bytes_per_ms: float = float("inf")
    shared_by: Sharing | None = None
    """Under contention; None: inside a node by the messages of one GPU, between nodes by those of one node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowWorker:
    """A GPU that needs `factor` times as long."""

    stage: int | None
    """None: the GPU lies where `share` says."""
    replica: int = 0
    share: float = 0.0
    """That far through all GPUs, from 0 to below 1: a place drawn at random that fits any number of them."""
    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """A GPU that does nothing for a while."""

    stage: int | None
    """None: the GPU lies where `share` says."""
    replica: int = 0
    share: float = 0.0
    at_ms: float
    for_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """The whole run dies at a moment and goes on from its last checkpoint."""

    at_ms: float
    for_ms: float
    """From the failure until the first action after it."""
    checkpoint_every: int
    """Slots (microbatches of one replica) between two checkpoints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Where a Program runs. The default changes nothing: the profile's own link, everything even and quiet."""

    name: str = "as-profiled"
    gpus_per_node: int | None = None
    """None: all devices in one node."""
    node_link: Link | None = None
    """Inside a node (NVLink, say); None: the profile's link."""
    network: Link | None = None
    """Between nodes; None: as inside."""
    contention: bool = False
    """Whether messages queue for what they share: ports of GPUs, cards and buses of nodes (contention.py)."""
    overlapped: bool | None = None
    """Whether a stage computes while its messages are under way; None: as the profile says."""
    memory_bytes: float | None = None
    """Device memory; None: as the profile says."""
    jitter: float = 0.0
    """Standard deviation of the logarithm of a random factor, with mean 1, on every action."""
    seed: int = 0
    slow: tuple[SlowWorker, ...] = ()
    pauses: tuple[Pause, ...] = ()
    restart: Restart | None = None

    def needs_simpy(self) -> bool:
        """Whether the recurrence cannot tell: contention and pauses are beyond it."""
        return self.contention or bool(self.pauses)

    def node(self, device: int) -> int:
        """The node that holds a device."""
        return device // self.gpus_per_node if self.gpus_per_node else 0

    def node_sharing(self) -> Sharing:
        """Whose messages queue inside a node: by default those of one GPU for its NVLink port, each way by itself."""
        return (self.node_link and self.node_link.shared_by) or "gpu"

    def network_sharing(self) -> Sharing:
        """Whose messages queue between nodes: by default those of one node for its network card, each way by itself."""
        return (self.network and self.network.shared_by) or "node"

    def links(self, *, num_stages: int, num_replicas: int, profiled: LinkCosts) -> tuple[LinkCosts, ...]:
        """For every worker the link to the next stage, and from the last stage back to the first."""
        return tuple(
            self._between(worker, self._next(worker, num_stages), profiled)
            for worker in range(num_stages * num_replicas)
        )

    def replica_link(self, *, num_stages: int, num_replicas: int, profiled: LinkCosts) -> LinkCosts:
        """The slowest link between replicas of a stage: what a ring reduction runs at."""
        peers = [
            self._between(stage, replica * num_stages + stage, profiled)
            for stage in range(num_stages)
            for replica in range(1, num_replicas)
        ]
        return min(peers, key=lambda link: (link.bytes_per_ms, -link.latency_ms), default=profiled)

    def _next(self, worker: int, num_stages: int) -> int:
        return worker + 1 if (worker + 1) % num_stages else worker + 1 - num_stages

    def _between(self, device: int, other: int, profiled: LinkCosts) -> LinkCosts:
        link = self.node_link if self.node(device) == self.node(other) else self.network or self.node_link
        if link is not None:
            profiled = replace(profiled, latency_ms=link.latency_ms, bytes_per_ms=link.bytes_per_ms)
        return profiled if self.overlapped is None else replace(profiled, overlapped=self.overlapped)

    def disturbed(self, costs: ProgramCosts, *, run: int = 0) -> ProgramCosts:
        """Costs with slow GPUs and jitter, drawn from (seed, run): the same every time."""
        graph = costs.graph
        factor = np.ones(graph.num_actions())
        for slow in self.slow:
            factor[graph.worker == self.worker(slow, graph)] *= slow.factor
        if self.jitter:
            drawn = np.random.default_rng([self.seed, run]).standard_normal(graph.num_actions())
            factor *= np.exp(self.jitter * drawn - self.jitter**2 / 2)
        return replace(costs, duration_ms=costs.duration_ms * factor)

    def worker(self, place: SlowWorker | Pause, graph: ProgramGraph) -> int:
        """The worker that a disturbance names. Raises SimulationError where there is none."""
        program = graph.program
        if place.stage is None:
            return int(place.share * len(program.workers))
        if not (0 <= place.stage < program.num_stages and 0 <= place.replica < program.num_replicas):
            raise SimulationError(
                f"cluster '{self.name}' names stage {place.stage} of replica {place.replica}, but the program has "
                f"{counted(program.num_stages, 'stage')} and {counted(program.num_replicas, 'replica')}; name one of "
                "them"
            )
        return place.replica * program.num_stages + place.stage

    def paused(self, graph: ProgramGraph, *, begin_ms: float = 0.0) -> tuple[Pauses, ...] | None:
        """The pauses of every worker from `begin_ms` on, in order and disjoint; None where there are none."""
        if not self.pauses:
            return None
        found: list[list[tuple[float, float]]] = [[] for _ in graph.program.workers]
        for pause in sorted(self.pauses, key=lambda pause: pause.at_ms):
            own = found[self.worker(pause, graph)]
            begin = max(pause.at_ms - begin_ms, own[-1][1] if own else 0.0)
            own.append((begin, max(begin, pause.at_ms + pause.for_ms - begin_ms)))
        return tuple(tuple(own) for own in found)
