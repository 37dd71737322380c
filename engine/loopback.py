"""A transport without wires: what a worker receives is made up, what it sends is dropped. For measuring one stage."""

from collections import defaultdict, deque
from collections.abc import Sequence

import torch
from torch import Tensor

from .itinerary import Leg
from .message import Message, Wire
from .recorder import now_ns
from .transport import Direction, Edge, Transport


class MadeUp:
    """A receive that is there at once."""

    def __init__(self, content: Tensor) -> None:
        self._content = content

    def wait(self) -> Tensor:
        return self._content

    def on_host(self) -> Tensor | None:
        return self._content if self._content.device.type == "cpu" else None


class LoopbackTransport:
    """Gives a stage, in the order in which its legs ask, well-formed messages of small random numbers."""

    def __init__(self, legs: Sequence[Leg], wire: Wire, *, worker: int, seed: int = 0) -> None:
        self._worker = worker
        self._wire = wire
        self._generator = torch.Generator(wire.device).manual_seed(seed)
        self._due: dict[Direction, deque[Message]] = defaultdict(deque)
        for leg in legs:
            for message in leg.post:
                self._due[message.direction].append(message)

    @property
    def worker(self) -> int:
        return self._worker

    @property
    def device(self) -> torch.device:
        return self._wire.device

    @property
    def host(self) -> Transport:
        return self

    def post(self, edge: Edge, num_bytes: int) -> MadeUp:
        message = self._due[edge.direction].popleft()
        shape, device = message.shape(self._wire.hidden_size), self._wire.device
        payload = torch.randn(shape, generator=self._generator, device=device)
        if message.direction is Direction.UP:
            payload *= 1e-3
        norms = torch.ones(message.num_norms(), dtype=torch.float64, device=device)
        return MadeUp(self._wire.pack(message, payload=payload.to(self._wire.dtype), norms=norms, clock_ns=0))

    def send(self, edge: Edge, message: Tensor) -> int:
        """Dropped."""
        return now_ns()

    def reduce(self, tensor: Tensor, *, workers: Sequence[int]) -> None:
        """Alone, a sum is what one brings."""

    def barrier(self) -> None:
        """Alone, everybody is here."""

    def finish(self) -> None:
        """Nothing is under way."""

    def close(self) -> None:
        """There is no run to leave."""
