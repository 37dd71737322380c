"""A bool that the device works out and the host wants to know later, without waiting for it now."""

import torch
from torch import Tensor


class HostFlag:
    """Copied to the host behind the work at hand."""

    def __init__(self, flag: Tensor) -> None:
        """`flag`: a bool scalar on any device; what it is now counts, whatever becomes of the tensor."""
        self._known: bool | None = None
        if flag.device.type != "cuda":
            self._known = bool(flag)
            return
        self._host = torch.empty((), dtype=torch.bool, pin_memory=True)
        self._host.copy_(flag, non_blocking=True)
        self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._ready.record(torch.cuda.current_stream(flag.device))

    def get(self) -> bool:
        """Its value; waits for the device where that has not come so far."""
        if self._known is None:
            self._ready.synchronize()
            self._known = bool(self._host)
        return self._known
