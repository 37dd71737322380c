"""A strict transport between threads of one process, for tests: a send waits until its receive has been posted.

No network buffers more strictly than this, so an order that runs here deadlocks nowhere.
"""

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .errors import EngineError, PeerLostError
from .recorder import now_ns
from .transport import Edge, Transport


class Switchboard:
    """What the workers of one run share: posted buffers by edge, sums under way, and who is gone."""

    def __init__(self, num_workers: int, *, timeout_s: float = 60.0, device: torch.device | str = "cpu") -> None:
        self.num_workers = num_workers
        self.device = torch.device(device)
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._posted: dict[Edge, deque[PostedBuffer]] = defaultdict(deque)
        self._sums: dict[tuple[tuple[int, ...], int], dict[int, Tensor]] = defaultdict(dict)
        self._gone: dict[int, str] = {}

    def post(self, buffer: "PostedBuffer") -> None:
        """Offer a buffer to the next message of its edge."""
        with self._changed:
            self._posted[buffer.edge].append(buffer)
            self._changed.notify_all()

    def fill(self, edge: Edge, message: Tensor) -> None:
        """Copy a message into the oldest buffer of its edge, waiting for one if need be."""
        with self._changed:
            self._wait(lambda: bool(self._posted[edge]), peers=(edge.target,), why=f"worker {edge.target} to receive")
            buffer = self._posted[edge].popleft()
            if len(buffer.content) != len(message):
                raise EngineError(f"{edge}: a message of {len(message)} bytes meets a buffer of {len(buffer.content)}")
            buffer.content.copy_(message)
            buffer.filled = True
            self._changed.notify_all()

    def take(self, buffer: "PostedBuffer") -> Tensor:
        """The content of a buffer once its message is there."""
        source = buffer.edge.source
        with self._changed:
            self._wait(lambda: buffer.filled, peers=(source,), why=f"worker {source} to send")
        return buffer.content

    def sum(self, worker: int, tensor: Tensor, *, workers: tuple[int, ...], call: int) -> Tensor:
        """The sum of what these workers bring to their call of this number, added in their order."""
        with self._changed:
            parts = self._sums[workers, call]
            parts[worker] = tensor.clone()
            self._changed.notify_all()
            self._wait(lambda: len(parts) == len(workers), peers=workers, why=f"workers {workers} to add up")
        return torch.stack([parts[peer] for peer in workers]).sum(dim=0)

    def leave(self, worker: int, reason: str) -> None:
        """Say that a worker will send and receive no more: whoever waits for it gets a PeerLostError."""
        with self._changed:
            self._gone[worker] = reason
            self._changed.notify_all()

    def _wait(self, ready: Callable[[], bool], *, peers: Sequence[int], why: str) -> None:
        def lost() -> list[int]:
            return [peer for peer in peers if peer in self._gone]

        if not self._changed.wait_for(lambda: ready() or bool(lost()), timeout=self._timeout_s):
            raise EngineError(f"nothing moved for {self._timeout_s} s while waiting for {why}; the order deadlocks")
        if not ready():
            raise PeerLostError(f"worker {lost()[0]} is gone ({self._gone[lost()[0]]})")


class PostedBuffer:
    """A receive: a buffer that waits for its message."""

    def __init__(self, board: Switchboard, edge: Edge, num_bytes: int) -> None:
        self.edge = edge
        self.content = torch.full((num_bytes,), 0xFF, dtype=torch.uint8, device=board.device)
        self.filled = False
        self._board = board

    def wait(self) -> Tensor:
        return self._board.take(self)

    def on_host(self) -> Tensor | None:
        return self.content.cpu()


class RendezvousTransport:
    """One thread's end of a Switchboard."""

    def __init__(self, board: Switchboard, worker: int) -> None:
        self._board = board
        self._worker = worker
        self._num_sums: Counter[tuple[int, ...]] = Counter()

    @property
    def worker(self) -> int:
        return self._worker

    @property
    def device(self) -> torch.device:
        return self._board.device

    @property
    def host(self) -> Transport:
        return self

    def post(self, edge: Edge, num_bytes: int) -> PostedBuffer:
        buffer = PostedBuffer(self._board, edge, num_bytes)
        self._board.post(buffer)
        return buffer

    def send(self, edge: Edge, message: Tensor) -> int:
        self._board.fill(edge, message)
        return now_ns()

    def reduce(self, tensor: Tensor, *, workers: Sequence[int]) -> None:
        # As with process groups: each counts its own.
        peers = tuple(workers)
        self._num_sums[peers] += 1
        tensor.copy_(self._board.sum(self._worker, tensor, workers=peers, call=self._num_sums[peers]))

    def barrier(self) -> None:
        self.reduce(torch.zeros(1), workers=range(self._board.num_workers))

    def finish(self) -> None:
        """Nothing is ever under way: every send has been received when it returns."""

    def close(self) -> None:
        self._board.leave(self._worker, "it has left the run")
