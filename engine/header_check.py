"""Whether the messages that come are those that are due, without making a host wait for its GPU.

A message that has passed through the host is checked before it is used. Of one that has not, the header is copied to
the host behind the work at hand and checked when the next message is taken, or at the end: a run of two different
plans ends a microbatch late, and nothing of it is kept.
"""

from collections import deque

from torch import Tensor

from .host_copy import HostCopy
from .message import HEADER_BYTES, Message, Wire
from .transport import Receive


class HeaderCheck:
    """The headers of one worker that are still to be checked."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._open: deque[tuple[Message, HostCopy]] = deque()

    def note(self, message: Message, receive: Receive, buffer: Tensor) -> None:
        """A message has come. Raises EngineError if it, or an earlier one, is another than was due."""
        self.settle(wait=False)
        on_host = receive.on_host()
        if on_host is not None:
            self._wire.check(message, on_host)
            return
        self._open.append((message, HostCopy(buffer[:HEADER_BYTES])))

    def settle(self, *, wait: bool) -> None:
        """Check what has reached the host, or all that is open. Raises EngineError as `note`."""
        while self._open:
            message, header = self._open[0]
            if not wait and not header.is_there():
                return
            self._open.popleft()
            self._wire.check(message, header.get())
