"""A stand-in for NCCL and a GPU: halves are threads that meet over gloo, and a host that loads stands still.

As on a GPU, launching returns at once, and a half runs until the other one has done its share. `load` waits for all
halves that run here, and whatever else this host would do meanwhile waits for it: the worst that loading a kernel may
do.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from loraplex.engine.notes import Notes, PostedNote, SentNote
from loraplex.engine.recorder import now_ns


class Once:
    """A moment that somebody tells."""

    def __init__(self) -> None:
        self._told = threading.Event()

    def tell(self) -> None:
        self._told.set()

    def query(self) -> bool:
        return self._told.is_set()

    def synchronize(self) -> None:
        self._told.wait()


@dataclass(frozen=True, slots=True)
class Half:
    """One half of a transfer as it went, on the clock that all processes of a machine share."""

    kind: str
    peer: int
    launched_ns: int
    ended_ns: int


class WithoutGpu:
    """What wires have in common that need no GPU."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def enter_thread(self) -> None:
        pass


class HostWire(WithoutGpu):
    """Of one process; all make theirs together. Messages take `compute_s` to be computed, one after another."""

    def __init__(self, *, compute_s: float = 0.0, launch_s: float = 0.0) -> None:
        self._process_group = dist.new_group(backend="gloo")
        self._compute_s = compute_s
        self._launch_s = launch_s
        self._computed_at = 0.0
        self._host = threading.RLock()
        self._running = 0
        self._ended = threading.Condition()
        self.halves: list[Half] = []

    def room(self, peer: int, num_bytes: int) -> Tensor:
        with self._host:
            return torch.full((num_bytes,), 0xEE, dtype=torch.uint8)

    def computed(self) -> Once:
        moment, now = Once(), time.monotonic()
        self._computed_at = max(self._computed_at, now) + self._compute_s
        threading.Timer(self._computed_at - now, moment.tell).start()
        return moment

    def launch_send(self, peer: int, message: Tensor) -> Once:
        return self._launch("send", peer, lambda: dist.send(message, dst=peer, group=self._process_group))

    def launch_receive(self, peer: int, room: Tensor) -> Once:
        return self._launch("receive", peer, lambda: dist.recv(room, src=peer, group=self._process_group))

    def hand_over(self, room: Tensor, arrived: object) -> None:
        assert isinstance(arrived, Once)
        arrived.synchronize()

    def finish(self) -> None:
        with self._ended:
            self._ended.wait_for(lambda: not self._running)

    def load(self) -> None:
        """Stand still until nothing runs here."""
        with self._host:
            self.finish()

    def stand_still_for_notes_too(self) -> None:
        """From now on no thread of this process sends or reads a note while it loads."""
        send, wait = Notes.send, PostedNote.wait

        def sent(notes: Notes, peer: int, note: bytes) -> SentNote:
            with self._host:
                return send(notes, peer, note)

        def waited(posted: PostedNote) -> bytes:
            note = wait(posted)
            with self._host:
                return note

        Notes.send = sent  # type: ignore[method-assign,assignment]
        PostedNote.wait = waited  # type: ignore[method-assign,assignment]

    def _launch(self, kind: str, peer: int, do: Callable[[], object]) -> Once:
        moment = Once()
        with self._host:
            launched_ns = now_ns()
            with self._ended:
                self._running += 1

        def run() -> None:
            try:
                do()
            except RuntimeError:
                return  # The other half is gone, and this one runs on for ever.
            moment.tell()
            with self._ended:
                self.halves.append(Half(kind, peer, launched_ns, now_ns()))
                self._running -= 1
                self._ended.notify_all()

        threading.Thread(target=run, daemon=True).start()
        # Long enough for a host that wants to load to do so right behind the launch.
        time.sleep(self._launch_s)
        return moment
