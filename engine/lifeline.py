"""Ends a worker within seconds when a neighbour is gone, also while only its GPU waits for that neighbour.

A receive that NCCL has posted waits on the GPU, and may wait for ever: between GPUs of one machine nothing tells NCCL
that the other process has ended. Its sockets do. So every worker waits, in a thread, for a last word over gloo from
the workers next to it in number: it comes when they leave the run in good order, and an error when they are gone.
Who ends for that reason is itself missed by its other neighbour, so all hear of it.
"""

import datetime
import os
import sys
import threading
from collections.abc import Callable

import torch
import torch.distributed as dist

from .errors import PEER_LOST, PeerLostError

OnLost = Callable[[PeerLostError], None]


def end_process(error: PeerLostError) -> None:
    """Say why, and end without waiting for the GPU."""
    print(f"loraplex: {error}", file=sys.stderr, flush=True)
    os._exit(PEER_LOST)


class Lifeline:
    """Watches the neighbours of one worker over a process group that serves nothing else.

    All workers make theirs together. `on_lost` is called in a thread of its own.
    """

    def __init__(self, *, on_lost: OnLost = end_process) -> None:
        # Longer than any run: silence is what it is meant to hear.
        self._process_group = dist.new_group(timeout=datetime.timedelta(days=3650), backend="gloo")
        self._on_lost = on_lost
        worker, num_workers = dist.get_rank(), dist.get_world_size()
        self._neighbours = [peer for peer in (worker - 1, worker + 1) if 0 <= peer < num_workers]
        self._threads = [
            threading.Thread(target=self._watch, args=(peer,), name=f"loraplex-watch-{peer}", daemon=True)
            for peer in self._neighbours
        ]
        for thread in self._threads:
            thread.start()

    def _watch(self, peer: int) -> None:
        try:
            dist.recv(torch.zeros(1, dtype=torch.uint8), src=peer, group=self._process_group)
        except RuntimeError:
            self._on_lost(PeerLostError(f"worker {peer} is gone (its process has ended)"))

    def leave(self) -> None:
        """Say the last word, and hear that of the neighbours."""
        for peer in self._neighbours:
            dist.send(torch.ones(1, dtype=torch.uint8), dst=peer, group=self._process_group)
        for thread in self._threads:
            thread.join()
