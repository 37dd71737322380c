"""What transports for messages on a device have in common: all that is on the host goes over gloo beside them."""

import torch

from .gloo import GlooTransport


class OverHost:
    """One worker's end, whose messages live on `device`; `host` carries what is on the host."""

    def __init__(self, host: GlooTransport, *, device: torch.device) -> None:
        self._host = host
        self._device = device

    @property
    def worker(self) -> int:
        return self._host.worker

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def host(self) -> GlooTransport:
        return self._host

    def barrier(self) -> None:
        self._host.barrier()
