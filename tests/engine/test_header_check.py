"""A message of another plan is told: at once where it has been on the host, else when the next one comes."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from loraplex.engine.errors import EngineError
from loraplex.engine.header_check import HeaderCheck
from loraplex.engine.message import Message, Wire
from loraplex.engine.transport import Direction


@dataclass(frozen=True, slots=True)
class Came:
    """A receive that is over."""

    content: Tensor
    host: Tensor | None

    def wait(self) -> Tensor:
        return self.content

    def on_host(self) -> Tensor | None:
        return self.host


def message(microbatch: int) -> Message:
    return Message(direction=Direction.DOWN, microbatch=microbatch, num_tokens=3)


def sent(wire: Wire, microbatch: int) -> Tensor:
    payload = torch.zeros(1, 3, wire.hidden_size, device=wire.device)
    none = torch.empty(0, dtype=torch.float64, device=wire.device)
    return wire.pack(message(microbatch), payload=payload, norms=none, clock_ns=0)


def test_what_was_on_the_host_is_checked_before_it_is_used() -> None:
    wire = Wire(hidden_size=4, dtype=torch.float32)
    check = HeaderCheck(wire)
    right, wrong = sent(wire, 5), sent(wire, 6)
    check.note(message(5), Came(right, right), right)
    with pytest.raises(EngineError, match=r"a message of microbatch 6 .* where the hidden states of microbatch 5"):
        check.note(message(5), Came(wrong, wrong), wrong)
    check.settle(wait=True)


@pytest.mark.gpu
def test_what_stayed_on_the_gpu_is_checked_without_waiting_for_it_and_at_the_latest_in_the_end() -> None:
    wire = Wire(hidden_size=4, dtype=torch.float32, device=torch.device("cuda"))
    busy = torch.randn(8192, 8192, device="cuda")
    # Pinned memory is there from now on.
    sent(wire, 0).cpu()
    for first_microbatch in (5, 6):
        check = HeaderCheck(wire)
        for _ in range(20):
            busy = (busy @ busy).clamp(-1, 1)
        came = sent(wire, first_microbatch)
        check.note(message(5), Came(came, None), came)
        assert not torch.cuda.current_stream().query()
        if first_microbatch == 5:
            check.settle(wait=True)
        else:
            with pytest.raises(EngineError, match=r"a message of microbatch 6 .* of microbatch 5"):
                check.settle(wait=True)


@pytest.mark.gpu
def test_a_message_packed_on_the_gpu_has_the_bytes_of_one_packed_on_the_host() -> None:
    full = Message(direction=Direction.UP, microbatch=7, num_tokens=3, batches=((0, 1), (2, 4), (3, 0)))
    payload, norms = torch.randn(1, 3, 8), torch.rand(full.num_norms(), dtype=torch.float64)
    packed = []
    for device in ("cpu", "cuda"):
        wire = Wire(hidden_size=8, dtype=torch.float32, device=torch.device(device))
        buffer = wire.pack(full, payload=payload.to(device), norms=norms.to(device), clock_ns=11)
        assert buffer.device.type == device
        came, came_norms = wire.unpack(full, buffer)
        packed.append((wire.check(full, buffer.cpu()), came.cpu(), came_norms.cpu()))
    assert packed[0][0] == packed[1][0] == 11
    assert torch.equal(packed[0][1], packed[1][1])
    assert torch.equal(packed[0][2], packed[1][2])
    assert torch.equal(packed[1][1], payload)
