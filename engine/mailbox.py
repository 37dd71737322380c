"""A worker's messages: posted ahead, taken when due, sent with the norms that ride along."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import PeerLostError
from .header_check import HeaderCheck
from .itinerary import Batch, Leg
from .message import NORMS_PER_BATCH, Message, Wire
from .recorder import Recorder, now_ns
from .transport import Direction, Edge, Receive, Transport


def zero(device: torch.device | str = "cpu") -> Tensor:
    """Where sums begin: a float64 scalar."""
    return torch.zeros((), dtype=torch.float64, device=device)


@dataclass(slots=True, kw_only=True)
class Sums:
    """Numbers under way, by batch: float64 on the stage's device."""

    losses: dict[Batch, Tensor] = field(default_factory=dict)
    """Last stage: the loss so far of batches in the making."""
    totals: dict[Batch, Tensor] = field(default_factory=dict)
    """`[2]`: squared gradient norm (of this stage and those after it on the way up, of all stages from stage 0 on) and
    the verdict on the adapter's last evaluation (evaluations.py)."""
    updates: dict[Batch, Tensor] = field(default_factory=dict)
    """Squared weight change of the stages up to this one."""

    def move(self, device: torch.device) -> None:
        """Bring all of them to a device."""
        for numbers in (self.losses, self.totals, self.updates):
            numbers.update({batch: number.to(device) for batch, number in numbers.items()})


class Mailbox:
    """The messages of one worker. Its errors name the worker, what it waited for, and where in the Program."""

    def __init__(self, transport: Transport, wire: Wire, *, sums: Sums, recorder: Recorder, name: str) -> None:
        self._transport = transport
        self._wire = wire
        self._sums = sums
        self._recorder = recorder
        self._name = name
        self._check = HeaderCheck(wire)
        self._posted: dict[Message, Receive] = {}
        self._payloads: dict[Message, Tensor] = {}

    def post(self, messages: Sequence[Message]) -> None:
        """Make room for messages before they come."""
        for message in messages:
            source = self._transport.worker + (-1 if message.direction is Direction.DOWN else 1)
            edge = Edge(source=source, target=self._transport.worker, direction=message.direction)
            self._posted[message] = self._transport.post(edge, self._wire.num_bytes(message))

    def take(self, message: Message, leg: Leg) -> None:
        """Wait for a message, add its norms to the sums, keep its payload for `payload`.

        Steps take the message of the forward they stand before; taking it again does nothing.
        """
        receive = self._posted.pop(message, None)
        if receive is None:
            return
        start = self._recorder.mark()
        try:
            buffer = receive.wait()
        except PeerLostError as error:
            raise PeerLostError(f"{self._name} waited for {message.name()} at {leg.word}: {error}") from None
        self._recorder.add("wait", leg.word, microbatch=message.microbatch, start=start, end=self._recorder.mark())
        self._check.note(message, receive, buffer)
        payload, norms = self._wire.unpack(message, buffer)
        if message.num_tokens:
            self._payloads[message] = payload
        if not message.batches:
            return
        # Copied, so that a scalar does not keep the whole message.
        columns = norms.clone().view(-1, NORMS_PER_BATCH[message.direction])
        for batch, values in zip(message.batches, columns, strict=True):
            self._sums.totals[batch] = values[:2]
            if message.direction is Direction.DOWN:
                self._sums.updates[batch] = values[2]

    def payload(self, message: Message) -> Tensor:
        """`[1, T, H]` of a message that was taken; handed out once."""
        return self._payloads.pop(message)

    def send(self, message: Message, payload: Tensor | None, leg: Leg) -> None:
        """Send a payload with the norms of the message's batches, which leave the sums."""
        start = self._recorder.mark()
        norms = []
        for batch in message.batches:
            norms.append(self._sums.totals.pop(batch))
            if message.direction is Direction.DOWN:
                norms.append(self._sums.updates.pop(batch).reshape(1))
        packed = torch.cat(norms) if norms else torch.empty(0, dtype=torch.float64, device=self._wire.device)
        buffer = self._wire.pack(message, payload=payload, norms=packed, clock_ns=now_ns())
        target = self._transport.worker + (1 if message.direction is Direction.DOWN else -1)
        edge = Edge(source=self._transport.worker, target=target, direction=message.direction)
        try:
            left = self._transport.send(edge, buffer)
        except PeerLostError as error:
            raise PeerLostError(f"{self._name} sent {message.name()} after {leg.word}: {error}") from None
        self._recorder.add(
            "transfer", leg.word, microbatch=message.microbatch, start=start, end=left, num_bytes=len(buffer)
        )

    def finish(self) -> None:
        """Wait until everything has left, and check what came and was not checked yet."""
        self._transport.finish()
        self._check.settle(wait=True)
