"""Sums over the replicas of a stage, with NCCL, for which hosts meet before and after.

A worker's share of an all-reduce runs on its GPU until all others have launched theirs. Its host must launch nothing
meanwhile: loading a kernel may wait for all that runs on the GPU (docs/clusters.md). So all come together on the host
first, and each then waits for the sum. There is one for each adapter's step.
"""

import datetime
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from .transport import Transport

MAX_CTAS = 8
"""Thread blocks that NCCL may occupy: a message of 64 MiB needs no more, and a GPU has 132 for them all."""


def communicator(workers: Sequence[int], timeout: datetime.timedelta) -> "dist.ProcessGroup":
    """A process group of these workers; all workers of the run call it, in the same order."""
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    options.config.max_ctas = MAX_CTAS
    made: dist.ProcessGroup = dist.new_group(list(workers), timeout=timeout, backend="nccl", pg_options=options)
    return made


class NcclSums:
    """One worker's share of all sums on GPUs; all workers make theirs together. No NCCL where there is one replica."""

    def __init__(
        self,
        host: Transport,
        *,
        num_stages: int,
        num_replicas: int,
        device: torch.device,
        timeout: datetime.timedelta,
    ) -> None:
        self._host = host
        self._device = device
        self._process_groups: dict[tuple[int, ...], dist.ProcessGroup] = {}
        for stage in range(num_stages if num_replicas > 1 and device.type == "cuda" else 0):
            peers = tuple(replica * num_stages + stage for replica in range(num_replicas))
            self._process_groups[peers] = communicator(peers, timeout)
        for peers in self._process_groups:
            # NCCL connects at the first use.
            if host.worker in peers:
                self.add_up(torch.zeros(1, device=device), workers=peers)

    def add_up(self, tensor: Tensor, *, workers: Sequence[int]) -> None:
        """Sum a tensor in place over these workers; wherever it lies."""
        if tensor.device.type == "cpu":
            self._host.reduce(tensor, workers=workers)
            return
        self._host.reduce(torch.zeros(1), workers=workers)
        dist.all_reduce(tensor, group=self._process_groups[tuple(workers)])
        done = torch.cuda.Event(blocking=True)
        done.record(torch.cuda.current_stream(self._device))
        done.synchronize()
