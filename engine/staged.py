"""Transport for workers that share a GPU, where NCCL refuses to serve: over the host's memory, with gloo.

A message is received into pinned memory, from where it goes to the GPU on a stream of its own: while the GPU is still
busy with what came before, the copy runs beside it. A message that goes out is copied to pinned memory on another
stream; a thread per edge waits until it is there and hands it to gloo. So the executor waits for nothing but messages
that have not come, and runs ahead of its GPU otherwise. On a CPU the same threads run, without the copies.
"""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.upload import write
from .gloo import MAX_OUTSTANDING_SENDS, GlooReceive, GlooTransport
from .over_host import OverHost
from .recorder import Later
from .transport import Edge


class StagedReceive:
    """A message on its way to pinned memory."""

    def __init__(self, receive: GlooReceive, device: torch.device, arrivals: "torch.cuda.Stream | None") -> None:
        self._receive = receive
        self._device = device
        self._arrivals = arrivals
        self._on_host: Tensor | None = None

    def wait(self) -> Tensor:
        pinned = self._on_host = self._receive.wait()
        if self._arrivals is None:
            return pinned
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._arrivals):
            # Made on this stream, so that the copy need not wait for whoever used the memory before.
            message = torch.empty(len(pinned), dtype=torch.uint8, device=self._device)
            message.copy_(pinned, non_blocking=True)
        current.wait_stream(self._arrivals)
        message.record_stream(current)
        return message

    def on_host(self) -> Tensor | None:
        return self._on_host


@dataclass(frozen=True, slots=True)
class _Parcel:
    # A message in host memory once `copied` has come, and whom to tell when it has left.
    content: Tensor
    copied: torch.cuda.Event | None
    left: Later


class _Sender:
    # Sends the messages of one edge in order, from a thread of its own.

    def __init__(self, edge: Edge, host: GlooTransport, device: torch.device) -> None:
        self._edge = edge
        self._host = host
        self._device = device
        self._changed = threading.Condition()
        self._waiting: deque[_Parcel] = deque()
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name=f"loraplex-send-{edge.direction}", daemon=True).start()

    def put(self, parcel: _Parcel) -> None:
        """Take a parcel, waiting while too many are before it. Raises what earlier ones met."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or len(self._waiting) < MAX_OUTSTANDING_SENDS)
            self._raise()
            self._waiting.append(parcel)
            self._changed.notify_all()

    def drain(self) -> None:
        """Wait until all have been handed to gloo. Raises what they met."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or not self._waiting)
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        if self._device.type == "cuda":
            # A thread begins on GPU 0, and would take memory there for nothing.
            torch.cuda.set_device(self._device)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                parcel = self._waiting[0]
            try:
                if parcel.copied is not None:
                    parcel.copied.synchronize()
                left_ns = self._host.send(self._edge, parcel.content)
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._tell_all()
                    self._changed.notify_all()
                return
            parcel.left.tell(left_ns)
            with self._changed:
                self._waiting.popleft()
                self._changed.notify_all()

    def _tell_all(self) -> None:
        # Nobody is to wait for the leaving of what will never leave.
        for parcel in self._waiting:
            parcel.left.tell(0)


class StagedTransport(OverHost):
    """One worker's end. `host` does the sending too."""

    def __init__(self, host: GlooTransport, *, device: torch.device) -> None:
        super().__init__(host, device=device)
        self._is_gpu = device.type == "cuda"
        self._arrivals = torch.cuda.Stream(device) if self._is_gpu else None
        self._departures = torch.cuda.Stream(device) if self._is_gpu else None
        self._senders: dict[Edge, _Sender] = {}

    def post(self, edge: Edge, num_bytes: int) -> StagedReceive:
        # torch keeps freed pinned memory for the next of its size, once the copies from it are through.
        pinned = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._is_gpu)
        return StagedReceive(self._host.post_into(edge, pinned), self._device, self._arrivals)

    def send(self, edge: Edge, message: Tensor) -> Later:
        if edge not in self._senders:
            self._senders[edge] = _Sender(edge, self._host, self._device)
        left = Later()
        self._senders[edge].put(self._parcel(message, left))
        return left

    def _parcel(self, message: Tensor, left: Later) -> _Parcel:
        if self._departures is None:
            return _Parcel(message, None, left)
        pinned = torch.empty(len(message), dtype=torch.uint8, pin_memory=True)
        # It sleeps instead of spinning: the workers of a shared GPU share the host's cores as well.
        copied = torch.cuda.Event(blocking=True)
        self._departures.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._departures):
            pinned.copy_(message, non_blocking=True)
            copied.record(self._departures)
        message.record_stream(self._departures)
        return _Parcel(pinned, copied, left)

    def reduce(self, tensor: Tensor, *, workers: Sequence[int]) -> None:
        if tensor.device.type == "cpu":
            self._host.reduce(tensor, workers=workers)
            return
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        pinned.copy_(tensor, non_blocking=True)
        copied = torch.cuda.Event(blocking=True)
        copied.record(torch.cuda.current_stream(self._device))
        # gloo adds up on the host, so this once the host has to wait.
        copied.synchronize()
        self._host.reduce(pinned, workers=workers)
        write(tensor, pinned)

    def finish(self) -> None:
        for sender in self._senders.values():
            sender.drain()
        self._host.finish()

    def close(self) -> None:
        self._host.close()
