"""A stand-in for GPU memory between processes: files that both map, copies that take their time in a thread.

As on a GPU, `put` returns before anything is copied, a signal counts from when `put` asked for it, and what a room held
is overwritten once it has been taken. A room stays in use for some questions after that.
"""

import queue
import threading
import time
from pathlib import Path

import torch
from torch import Tensor

from loraplex.engine.errors import EngineError
from loraplex.engine.peer_memory import ADDRESS_BYTES, Signal
from loraplex.engine.recorder import Later, now_ns

_ASKED, _GIVEN = 0, 1


class HostSignal:
    """How often a signal was asked for, and given: int64 `[2]` in a file."""

    def __init__(self, path: Path) -> None:
        self.counts = _mapped(path, 16).view(torch.int64)
        self.address = str(path).encode().ljust(ADDRESS_BYTES, b"\0")


class Questions:
    """A moment that is past when it has been asked for three times."""

    def __init__(self) -> None:
        self._left = 3

    def query(self) -> bool:
        self._left -= 1
        return self._left < 0

    def synchronize(self) -> None:
        self._left = 0


class HostMemory:
    """Of one process. `folder` must have a short name: addresses are paths."""

    def __init__(self, folder: Path, worker: int, *, delay_s: float = 0.002) -> None:
        self._folder = folder
        self._worker = worker
        self._delay_s = delay_s
        self._copies: queue.Queue[tuple[Tensor, Path, HostSignal, Later]] = queue.Queue()
        self.num_rooms = 0
        self._num_signals = 0
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def room(self, num_bytes: int) -> tuple[Tensor, bytes]:
        path = self._folder / f"room-{self._worker}-{self.num_rooms}"
        self.num_rooms += 1
        room = _mapped(path, num_bytes).fill_(0xEE)
        return room, str(path).encode().ljust(ADDRESS_BYTES, b"\0")

    def reach(self, address: bytes, signal: bytes) -> None:
        for content in (address, signal):
            if not _path(content).exists():
                raise EngineError(f"{_path(content)} is nowhere")

    def signal(self) -> HostSignal:
        self._num_signals += 1
        return HostSignal(self._folder / f"signal-{self._worker}-{self._num_signals}")

    def put(self, message: Tensor, address: bytes, signal: Signal) -> Later:
        assert isinstance(signal, HostSignal)
        signal.counts[_ASKED] += 1
        left = Later()
        self._copies.put((message, _path(address), signal, left))
        return left

    def take(self, room: Tensor, num_bytes: int, signal: bytes) -> tuple[Tensor, Questions]:
        counts = HostSignal(_path(signal)).counts
        due = counts[_ASKED].item()
        while counts[_GIVEN].item() < due:
            time.sleep(0.0005)
        message = room[:num_bytes].clone()
        room.fill_(0xEE)
        return message, Questions()

    def finish(self) -> None:
        self._copies.join()

    def _run(self) -> None:
        while True:
            message, path, signal, left = self._copies.get()
            time.sleep(self._delay_s)
            _mapped(path, path.stat().st_size)[: len(message)] = message
            signal.counts[_GIVEN] += 1
            left.tell(now_ns())
            self._copies.task_done()


def _mapped(path: Path, num_bytes: int) -> Tensor:
    return torch.from_file(str(path), shared=True, size=num_bytes, dtype=torch.uint8)


def _path(address: bytes) -> Path:
    return Path(address.rstrip(b"\0").decode())
