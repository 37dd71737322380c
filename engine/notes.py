"""Short notes of one size between workers on the host, apart from all that the host's transport carries."""

import datetime

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import PeerLostError


class PostedNote:
    """Room for a note that is still to come."""

    def __init__(self, peer: int, work: "dist.Work", content: Tensor) -> None:
        self._peer = peer
        self._work = work
        self._content = content

    def wait(self) -> bytes:
        """The note. Raises PeerLostError when its sender is gone."""
        _await(self._work, self._peer)
        return self._content.numpy().tobytes()


class SentNote:
    """A note under way; its memory lives here."""

    def __init__(self, peer: int, work: "dist.Work", content: Tensor) -> None:
        self._peer = peer
        self._work = work
        self._content = content

    def settle(self) -> None:
        """Wait until it has been taken. Raises PeerLostError when its reader is gone."""
        _await(self._work, self._peer)


class Notes:
    """One kind of notes: from one worker to another they come in the order in which they were sent.

    All workers make theirs together. Any thread may send, one at a time.
    """

    def __init__(self, *, num_bytes: int, timeout: datetime.timedelta) -> None:
        self._num_bytes = num_bytes
        self._process_group = dist.new_group(timeout=timeout, backend="gloo")

    def post(self, peer: int) -> PostedNote:
        """Make room for the next note of a worker."""
        content = torch.empty(self._num_bytes, dtype=torch.uint8)
        try:
            work = dist.irecv(content, src=peer, group=self._process_group)
        except RuntimeError:
            raise PeerLostError(f"worker {peer} is gone (connection closed)") from None
        assert work is not None
        return PostedNote(peer, work, content)

    def send(self, peer: int, note: bytes) -> SentNote:
        """Send a note of the one size."""
        assert len(note) == self._num_bytes
        content = torch.frombuffer(bytearray(note), dtype=torch.uint8)
        try:
            work = dist.isend(content, dst=peer, group=self._process_group)
        except RuntimeError:
            raise PeerLostError(f"worker {peer} is gone (connection closed)") from None
        assert work is not None
        return SentNote(peer, work, content)


def _await(work: "dist.Work", peer: int) -> None:
    try:
        work.wait()
    except RuntimeError:
        raise PeerLostError(f"worker {peer} is gone (connection closed)") from None
