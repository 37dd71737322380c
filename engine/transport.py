"""What the executor needs of the wires between workers. Every implementation passes tests/engine/test_transport.py.

A worker is (replica, stage) as one number, replica * num_stages + stage. Between two neighbours there are two edges:
one down (activations) and one up (gradients). On each edge messages arrive in the order in which they were sent, and
both ends know every message's size beforehand.

Messages live on the worker's device. Where that is a GPU, none of these calls waits for work on it that need not be
done: what a call needs of the current stream comes first on the GPU, and later work there comes after what it gives.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor

from .recorder import Left


class Direction(StrEnum):
    """Which way a message goes: each has its own channel, so that neither waits behind the other."""

    DOWN = "down"
    """Towards the head: activations, and the norms that later steps clip by."""
    UP = "up"
    """Towards the embedding: gradients, and the shares of those norms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """From one worker to another in one direction."""

    source: int
    target: int
    direction: Direction


def edges(*, num_stages: int, num_replicas: int) -> Iterator[Edge]:
    """Every edge of a run, in the order in which all workers connect them."""
    for replica in range(num_replicas):
        for upper in range(replica * num_stages, (replica + 1) * num_stages - 1):
            yield Edge(source=upper, target=upper + 1, direction=Direction.DOWN)
            yield Edge(source=upper + 1, target=upper, direction=Direction.UP)


class Receive(Protocol):
    """A receive that has been posted."""

    def wait(self) -> Tensor:
        """The message's bytes, uint8 `[num_bytes]` on the transport's device, for work on the current stream.

        Raises PeerLostError when the sender is gone; where only a GPU waits, the process ends instead (lifeline.py).
        """
        ...

    def on_host(self) -> Tensor | None:
        """The same bytes on the host once `wait` has returned; None where they never were there."""
        ...


class Transport(Protocol):
    """One worker's end of all its edges."""

    @property
    def worker(self) -> int: ...

    @property
    def device(self) -> torch.device:
        """Where messages live."""
        ...

    @property
    def host(self) -> "Transport":
        """The same workers' transport for messages on the host; itself on a CPU. Reaches every worker, not only
        neighbours."""
        ...

    def post(self, edge: Edge, num_bytes: int) -> Receive:
        """Make room for the next message on an edge that ends here; returns at once."""
        ...

    def send(self, edge: Edge, message: Tensor) -> Left:
        """Send uint8 `[num_bytes]` on an edge that begins here; when it had left.

        May wait until the receiver has posted; the caller does not touch `message` again.
        Raises PeerLostError when the receiver is gone.
        """
        ...

    def reduce(self, tensor: Tensor, *, workers: Sequence[int]) -> None:
        """Sum a tensor in place over these workers, of whom this is one; all call in the same order.

        On the transport's device: over the replicas of a stage. On the host: over those, or over all workers.
        """
        ...

    def barrier(self) -> None:
        """Wait until every worker has come here."""
        ...

    def finish(self) -> None:
        """Wait until everything that was sent has left."""
        ...

    def close(self) -> None:
        """Leave the run; all workers call it together, when everything has been received."""
        ...
