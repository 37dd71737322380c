"""What travels between stages: hidden states or their gradients, and the norms that ride along. One buffer each.

Layout: 8 int64 (mark, microbatch, number of norms, payload bytes, sender's clock in ns, 3 spare), the norms as float64,
whatever up to a multiple of 64 bytes, the payload. The receiver knows all of it beforehand and checks it: gloo would
not notice a message that is shorter than the buffer it lands in.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..kernels.upload import write
from .errors import EngineError
from .transport import Direction

_MARK = 0x4C6F5261506C6578
_HEADER_WORDS = 8
HEADER_BYTES = 8 * _HEADER_WORDS
_ALIGNMENT = 64
NORMS_PER_BATCH = {Direction.UP: 2, Direction.DOWN: 3}
"""Up: the squared gradient norm of this stage and those after it, and the verdict on the adapter's last evaluation.
Down: the total, the verdict, and the squared update so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What both ends know of a message before it is sent."""

    direction: Direction
    microbatch: int = -1
    """-1 for a message that only carries norms."""
    num_tokens: int = 0
    batches: tuple[tuple[int, int], ...] = ()
    """(adapter, global batch) of each norm that rides along."""

    def num_norms(self) -> int:
        return len(self.batches) * NORMS_PER_BATCH[self.direction]

    def name(self) -> str:
        """For error messages: what a worker waits for when it waits for this."""
        if self.microbatch < 0:
            return "the gradient norms of the last optimizer steps"
        what = "hidden states" if self.direction is Direction.DOWN else "gradient"
        return f"the {what} of microbatch {self.microbatch}"

    def shape(self, hidden_size: int) -> tuple[int, int, int]:
        """Of the payload."""
        return (1, self.num_tokens, hidden_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """How payloads look in one run."""

    hidden_size: int
    dtype: torch.dtype
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def payload_bytes(self, message: Message) -> int:
        return message.num_tokens * self.hidden_size * self.dtype.itemsize

    def payload_offset(self, message: Message) -> int:
        head = HEADER_BYTES + 8 * message.num_norms()
        return -(-head // _ALIGNMENT) * _ALIGNMENT

    def num_bytes(self, message: Message) -> int:
        """Size of the whole buffer."""
        return self.payload_offset(message) + self.payload_bytes(message)

    def pack(self, message: Message, *, payload: Tensor | None, norms: Tensor, clock_ns: int) -> Tensor:
        """The buffer to send: `payload [1, T, H]` (None without tokens), `norms` float64 `[num_norms]`.

        Where fewer rows are left than the message has tokens, they come first, and whatever behind them.

        On a GPU three launches on the current stream, for which the host does not wait.
        """
        buffer = torch.empty(self.num_bytes(message), dtype=torch.uint8, device=self.device)
        words = [_MARK, message.microbatch, message.num_norms(), self.payload_bytes(message), clock_ns, 0, 0, 0]
        write(buffer[:HEADER_BYTES].view(torch.int64), torch.tensor(words, dtype=torch.int64))
        if message.num_norms():
            self._norms(message, buffer).copy_(norms)
        if payload is not None:
            room = buffer[self.payload_offset(message) :].view(self.dtype)
            room[: payload.numel()].copy_(payload.reshape(-1))
        return buffer

    def check(self, message: Message, header: Tensor) -> int:
        """Read the first HEADER_BYTES of a message on the host: the sender's clock in ns.

        Raises EngineError if another message came than was due.
        """
        words = header[:HEADER_BYTES].view(torch.int64).tolist()
        expected = [_MARK, message.microbatch, message.num_norms(), self.payload_bytes(message)]
        if words[:4] != expected:
            raise EngineError(
                f"received a message of microbatch {words[1]} with {words[2]} norms and {words[3]} bytes where "
                f"{message.name()} with {expected[2]} norms and {expected[3]} bytes was due; "
                "the workers do not run the same plan: start them with one plan and one version of loraplex"
            )
        return int(words[4])

    def unpack(self, message: Message, buffer: Tensor) -> tuple[Tensor, Tensor]:
        """(payload `[1, T, H]`, norms float64 `[num_norms]`), views of the buffer; the header is for `check`."""
        payload = buffer[self.payload_offset(message) :].view(self.dtype).view(message.shape(self.hidden_size))
        return payload, self._norms(message, buffer)

    def _norms(self, message: Message, buffer: Tensor) -> Tensor:
        return buffer[HEADER_BYTES : HEADER_BYTES + 8 * message.num_norms()].view(torch.float64)
