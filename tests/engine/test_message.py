"""What is on the wire comes off the wire, and nothing else is taken for it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraplex.engine.errors import EngineError
from loraplex.engine.message import Message, Wire
from loraplex.engine.transport import Direction

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@given(
    st.sampled_from(list(Direction)),
    st.sampled_from(DTYPES),
    st.integers(0, 40),
    st.integers(0, 9),
    st.integers(0, 2**62),
)
def test_a_message_comes_back_bit_for_bit(
    direction: Direction, dtype: torch.dtype, num_tokens: int, num_batches: int, clock_ns: int
) -> None:
    wire = Wire(hidden_size=12, dtype=dtype)
    message = Message(
        direction=direction,
        microbatch=7,
        num_tokens=num_tokens,
        batches=tuple((adapter, 3) for adapter in range(num_batches)),
    )
    payload = torch.randn(message.shape(12)).to(dtype)
    norms = torch.rand(message.num_norms(), dtype=torch.float64)
    buffer = wire.pack(message, payload=payload, norms=norms, clock_ns=clock_ns)
    assert len(buffer) == wire.num_bytes(message)
    came, came_norms = wire.unpack(message, buffer)
    assert torch.equal(came, payload)
    assert torch.equal(came_norms, norms)
    assert wire.check(message, buffer) == clock_ns
    assert wire.payload_offset(message) % 64 == 0


def test_fewer_rows_than_there_is_room_for_come_first() -> None:
    wire = Wire(hidden_size=4, dtype=torch.float32)
    message = Message(direction=Direction.DOWN, microbatch=1, num_tokens=5)
    payload = torch.randn(1, 3, 4)
    buffer = wire.pack(message, payload=payload, norms=torch.empty(0), clock_ns=3)
    assert len(buffer) == wire.num_bytes(message)
    came, _ = wire.unpack(message, buffer)
    assert torch.equal(came[:, :3], payload)
    nothing = wire.pack(message, payload=None, norms=torch.empty(0), clock_ns=4)
    assert (len(nothing), wire.check(message, nothing)) == (len(buffer), 4)


def test_down_go_total_verdict_and_update_up_only_share_and_verdict() -> None:
    batches = ((0, 1), (2, 5))
    assert Message(direction=Direction.DOWN, batches=batches).num_norms() == 6
    assert Message(direction=Direction.UP, batches=batches).num_norms() == 4


def test_another_message_than_the_one_that_is_due_is_told() -> None:
    wire = Wire(hidden_size=4, dtype=torch.float32)
    due = Message(direction=Direction.UP, microbatch=3, num_tokens=5)
    sent = Message(direction=Direction.UP, microbatch=2, num_tokens=5)
    buffer = wire.pack(sent, payload=torch.zeros(1, 5, 4), norms=torch.empty(0), clock_ns=0)
    with pytest.raises(
        EngineError,
        match=r"received a message of microbatch 2 with 0 norms and 80 bytes where the gradient of microbatch 3 with 0 "
        r"norms and 80 bytes was due; the workers do not run the same plan",
    ):
        wire.check(due, buffer)


def test_a_shorter_message_is_told_though_gloo_would_take_it() -> None:
    wire = Wire(hidden_size=4, dtype=torch.float32)
    due = Message(direction=Direction.DOWN, microbatch=2, num_tokens=9)
    sent = Message(direction=Direction.DOWN, microbatch=2, num_tokens=5)
    buffer = torch.zeros(wire.num_bytes(due), dtype=torch.uint8)
    short = wire.pack(sent, payload=torch.zeros(1, 5, 4), norms=torch.empty(0), clock_ns=0)
    buffer[: len(short)] = short
    with pytest.raises(EngineError, match=r"80 bytes where the hidden states of microbatch 2 with 0 norms and 144"):
        wire.check(due, buffer)
