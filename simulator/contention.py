"""Who shares what on the way of a message: ports of GPUs, network cards and buses of nodes.

A message takes the way out of its sender and the way into its receiver at once, for as long as its bytes need; while it
is under way in the cable (latency) both are free again. Each is first come, first served, each direction by itself.
Gradient reductions of replicas and the short messages of norms do not queue: their cost is in the profile's terms.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..planner.costing import sends
from ..planner.graph import ProgramGraph
from ..traces.costs import LinkCosts
from .cluster import Cluster, Sharing
from .replay import Channels

Ways = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Out and in, by number: ports of GPUs come first, then network cards of nodes, then buses inside them."""


def message_channels(cluster: Cluster, graph: ProgramGraph, links: Sequence[LinkCosts]) -> Channels | None:
    """What every message occupies, for `replay`; None without contention. `links` as from `Cluster.links`."""
    if not cluster.contention:
        return None
    sending, link = sends(graph)
    stages, num_workers = graph.program.num_stages, len(graph.program.workers)
    here = graph.worker.astype(np.int64)
    upper = np.where((link + 1) % stages, link + 1, link + 1 - stages)
    there = np.where(here == link, upper, link)
    node = np.array([cluster.node(worker) for worker in range(num_workers)], dtype=np.int64)
    inside = node[here] == node[there]
    ports = (2 * here, 2 * there + 1)
    cards = (2 * (num_workers + node[here]), 2 * (num_workers + node[there]) + 1)
    bus = 4 * num_workers + node[here]
    nothing = np.full(graph.num_actions(), -1, dtype=np.int64)
    within: dict[Sharing, Ways] = {"gpu": ports, "node": (bus, bus), "nobody": (nothing, nothing)}
    across: dict[Sharing, Ways] = {"gpu": ports, "node": cards, "nobody": (nothing, nothing)}
    leaves, enters = (
        np.where(sending, np.where(inside, near, far), -1)
        for near, far in zip(within[cluster.node_sharing()], across[cluster.network_sharing()], strict=True)
    )
    latency = np.array([found.latency_ms for found in links])[link]
    return Channels(leaves=leaves, enters=enters, latency_ms=np.where(sending, latency, 0.0))
