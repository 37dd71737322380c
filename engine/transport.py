"""What the executor needs of the wires between workers. Every implementation passes tests/engine/test_transport.py.

A worker is (replica, stage) as one number, replica * num_stages + stage. Between two neighbours there are two edges:
one down (activations) and one up (gradients). On each edge messages arrive in the order in which they were sent, and
both ends know every message's size beforehand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from torch import Tensor


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


class Receive(Protocol):
    """A receive that has been posted."""

    def wait(self) -> Tensor:
        """The message's bytes, uint8 `[num_bytes]`. Raises PeerLostError when the sender is gone."""
        ...


class Transport(Protocol):
    """One worker's end of all its edges."""

    @property
    def worker(self) -> int: ...

    def post(self, edge: Edge, num_bytes: int) -> Receive:
        """Make room for the next message on an edge that ends here; returns at once."""
        ...

    def send(self, edge: Edge, message: Tensor) -> None:
        """Send uint8 `[num_bytes]` on an edge that begins here.

        May wait until the receiver has posted; the caller does not touch `message` again.
        Raises PeerLostError when the receiver is gone.
        """
        ...

    def reduce(self, tensor: Tensor, *, workers: Sequence[int]) -> None:
        """Sum a tensor in place over these workers, of whom this is one; all call in the same order."""
        ...

    def barrier(self) -> None:
        """Wait until every worker has come here."""
        ...

    def finish(self) -> None:
        """Wait until everything that was sent has left."""
        ...
