"""Memory of this worker's GPU that a worker beside it may write into, and events that both can wait for: CUDA IPC.

torch can share tensors between processes too, but opens them on the GPU where they lie, for which every process needs a
context on its neighbours' GPUs (some 500 MB each), and leaves a file of counters behind. Three calls of CUDA's driver,
made here, open a neighbour's memory from one's own context.
"""

import ctypes
import struct
from typing import Protocol

import torch
from torch import Tensor

from .errors import EngineError
from .recorder import Left

ADDRESS_BYTES = 96
"""Room for where memory lies, or for the name of an event, in a note to another worker."""
_HANDLE_BYTES = 64
_PLACE = struct.Struct("<q")
_LAZY_PEER_ACCESS = 1


class Moment(Protocol):
    """A moment on the device: it is past, or one can wait for it."""

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...


class Signal(Protocol):
    """Told by this worker once a message lies with its neighbour, which knows it by its address."""

    @property
    def address(self) -> bytes: ...


class Memory(Protocol):
    """What PeerTransport asks of a device."""

    @property
    def device(self) -> torch.device: ...

    def room(self, num_bytes: int) -> tuple[Tensor, bytes]:
        """Memory for messages, uint8 `[num_bytes]` of any content, and its address for a neighbour."""
        ...

    def reach(self, address: bytes, signal: bytes) -> None:
        """Open a neighbour's memory and a signal of its. Raises RuntimeError where that cannot be."""
        ...

    def signal(self) -> Signal:
        """One that may be given to `put` again once its former message was taken."""
        ...

    def put(self, message: Tensor, address: bytes, signal: Signal) -> Left:
        """Copy a message there behind the current work, then give the signal; when the copy is through."""
        ...

    def take(self, room: Tensor, num_bytes: int, signal: bytes) -> tuple[Tensor, Moment]:
        """The message in a room for the current work, once the signal is given, and when the room is empty again.

        Counts the signal last given to `put` before this call.
        """
        ...

    def finish(self) -> None:
        """Wait until everything asked for is through."""
        ...


class GpuSignal:
    """An event that other processes can wait for."""

    def __init__(self, device: torch.device) -> None:
        self.event = torch.cuda.Event(interprocess=True)
        with torch.cuda.device(device):
            self.address = _padded(self.event.ipc_handle())


class GpuMemory:
    """Of one GPU. Nothing here makes the host wait for it, but `finish`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._driver = _Driver()
        # Nothing ever runs on it, so memory made there is in use by nobody.
        self._idle = torch.cuda.Stream(device)
        self._departures = torch.cuda.Stream(device)
        self._bases: dict[bytes, int] = {}
        self._events: dict[bytes, torch.cuda.Event] = {}
        # What a neighbour has opened must not be given back to CUDA.
        self._shared: list[Tensor] = []

    @property
    def device(self) -> torch.device:
        return self._device

    def room(self, num_bytes: int) -> tuple[Tensor, bytes]:
        with torch.cuda.stream(self._idle):
            room = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        self._shared.append(room)
        # A handle is that of the whole allocation in which torch has put the room.
        base = self._driver.base_of(room.data_ptr())
        return room, _padded(self._driver.handle_of(base) + _PLACE.pack(room.data_ptr() - base))

    def reach(self, address: bytes, signal: bytes) -> None:
        self._open(address)
        self._heard(signal)

    def signal(self) -> GpuSignal:
        return GpuSignal(self._device)

    def put(self, message: Tensor, address: bytes, signal: Signal) -> torch.cuda.Event:
        assert isinstance(signal, GpuSignal)
        target = self._open(address)
        self._departures.wait_stream(torch.cuda.current_stream(self._device))
        self._driver.copy(target, message.data_ptr(), len(message), stream=self._departures.cuda_stream)
        message.record_stream(self._departures)
        signal.event.record(self._departures)
        left = torch.cuda.Event(enable_timing=True)
        left.record(self._departures)
        return left

    def take(self, room: Tensor, num_bytes: int, signal: bytes) -> tuple[Tensor, torch.cuda.Event]:
        current = torch.cuda.current_stream(self._device)
        current.wait_event(self._heard(signal))
        # 64 MiB are copied in 0.05 ms, and then nobody need know how long the message is in use.
        message = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        message.copy_(room[:num_bytes])
        empty = torch.cuda.Event()
        empty.record(current)
        return message, empty

    def finish(self) -> None:
        torch.cuda.synchronize(self._device)

    def _heard(self, signal: bytes) -> torch.cuda.Event:
        if signal not in self._events:
            self._events[signal] = torch.cuda.Event.from_ipc_handle(self._device, signal[:_HANDLE_BYTES])
        return self._events[signal]

    def _open(self, address: bytes) -> int:
        handle, (place,) = address[:_HANDLE_BYTES], _PLACE.unpack_from(address, _HANDLE_BYTES)
        if handle not in self._bases:
            self._bases[handle] = self._driver.opened(handle)
        return self._bases[handle] + int(place)


class _Handle(ctypes.Structure):
    # CUipcMemHandle, which goes by value.
    _fields_ = (("content", ctypes.c_ubyte * _HANDLE_BYTES),)


class _Driver:
    # CUDA's driver API on the current context, which is torch's.

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")

    def base_of(self, pointer: int) -> int:
        """Where the allocation that holds this pointer begins."""
        base, size = ctypes.c_uint64(), ctypes.c_size_t()
        told = self._cuda.cuMemGetAddressRange_v2(ctypes.byref(base), ctypes.byref(size), ctypes.c_uint64(pointer))
        self._check(told, "finding the bounds of GPU memory")
        return base.value

    def handle_of(self, base: int) -> bytes:
        handle = _Handle()
        told = self._cuda.cuIpcGetMemHandle(ctypes.byref(handle), ctypes.c_uint64(base))
        self._check(told, "sharing GPU memory (unset expandable_segments in PYTORCH_CUDA_ALLOC_CONF)")
        return bytes(handle.content)

    def opened(self, handle: bytes) -> int:
        base, given = ctypes.c_uint64(), _Handle.from_buffer_copy(handle)
        told = self._cuda.cuIpcOpenMemHandle_v2(ctypes.byref(base), given, ctypes.c_uint(_LAZY_PEER_ACCESS))
        self._check(told, "opening a neighbour's GPU memory")
        return base.value

    def copy(self, target: int, source: int, num_bytes: int, *, stream: int) -> None:
        told = self._cuda.cuMemcpyAsync(
            ctypes.c_uint64(target), ctypes.c_uint64(source), ctypes.c_size_t(num_bytes), ctypes.c_void_p(stream)
        )
        self._check(told, "copying to a neighbour's GPU memory")

    def _check(self, told: int, doing: str) -> None:
        if told:
            name = ctypes.c_char_p()
            self._cuda.cuGetErrorName(ctypes.c_int(told), ctypes.byref(name))
            raise EngineError(f"{doing}: CUDA said {told} ({(name.value or b'').decode()})")


def _padded(content: bytes) -> bytes:
    return content.ljust(ADDRESS_BYTES, b"\0")
