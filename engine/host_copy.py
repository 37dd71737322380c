"""What a device works out and the host wants to know later, without waiting for it now."""

import torch
from torch import Tensor


class HostCopy:
    """A tensor as it is now, on its way to the host behind the work at hand, whatever becomes of the tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.ready: torch.cuda.Event | None = None
        """When it has come, as an event with timing; None where the tensor was on the host."""
        if tensor.device.type != "cuda":
            self._on_host = tensor.clone()
            return
        self._on_host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._on_host.copy_(tensor, non_blocking=True)
        self.ready = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.ready.record(torch.cuda.current_stream(tensor.device))

    def is_there(self) -> bool:
        """Whether it has come; waits for nothing."""
        return self.ready is None or bool(self.ready.query())  # type: ignore[no-untyped-call]

    def get(self) -> Tensor:
        """It, on the host; waits for the device where that has not come so far."""
        if self.ready is not None:
            self.ready.synchronize()
        return self._on_host
