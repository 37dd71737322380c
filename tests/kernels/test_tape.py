"""Plans: passes recorded on some tensors and played on others."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from loraplex.kernels import fused
from loraplex.kernels.fused_bank import fused_banked_linears
from loraplex.kernels.routing import Routing, WantedTables
from loraplex.kernels.steps import ROOM_ALIGNMENT_BYTES, Empty, Room, Run, with_room
from loraplex.kernels.tape import Tape, distinct, pointers_of
from loraplex.tests.kernels.cases import Case, rounded, run, targets_of
from loraplex.tests.kernels.test_bank import bank_of
from loraplex.tests.kernels.test_bank import call as banked_call
from loraplex.tests.kernels.test_fused import CASES
from loraplex.tests.kernels.test_gemm import calls  # noqa: F401 (a fixture)


def listed_call(
    case: Case, dtype: torch.dtype, device: str, routing: Routing, targets: tuple[int, ...]
) -> dict[str, Tensor]:
    values = rounded(case.inputs(), dtype, device)
    weight = torch.cat(values["weights"])
    values["weights"] = list(torch.split(weight, list(case.out_features)))
    return run(fused.fused_linears, values, routing=routing, targets=targets)


def check_replayed(case: Case, dtype: torch.dtype, device: str) -> Routing:
    """Another layer's call first, whose targets have other ids, then this: the same bits as on a routing of its own."""
    fresh = listed_call(case, dtype, device, case.routing(device), targets_of(case))
    routing = case.routing(device)
    other = dataclasses.replace(case, seed=case.seed + 1)
    listed_call(other, dtype, device, routing, tuple(target + 7 for target in targets_of(case)))
    made = dict(routing.plans)
    played = listed_call(case, dtype, device, routing, targets_of(case))
    assert routing.plans == made
    assert len(made) == 2
    assert all(torch.equal(played[name], fresh[name]) for name in fresh)
    return routing


@pytest.mark.parametrize(
    "name",
    [
        "bias",
        "odd N and K",
        "three targets, a mask each",
        "rows of no adapter, an adapter without rows, one without the target",
    ],
)
def test_a_plan_played_on_other_tensors_gives_the_same_bits(name: str, device: str) -> None:
    check_replayed(CASES[name], torch.float32, device)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_so_does_one_of_the_fused_product(dropout: float, device: str, calls: dict[str, int]) -> None:  # noqa: F811
    case = Case(
        num_rows=160, num_features=136, out_features=(256, 64), segments=((0, 40, 0), (40, 120, 1)),
        lora_ranks=((4, 8), (16, 3)), dropout=(dropout, 0.0), targets=(5, 5),
    )  # fmt: skip
    check_replayed(case, torch.float16, device)
    # recorded twice (each on its own routing), played once
    assert calls == {"forward": 2, "backward": 2}


def test_scaling_dropout_and_the_sum_of_gradients_are_not_part_of_a_plan(device: str) -> None:
    case = dataclasses.replace(CASES["one adapter in two segments"], dropout=(0.3, 0.2))
    first = case.routing(device)
    listed_call(case, torch.float32, device, first, (0,))
    second = first.with_scaling(scaling=[3.0, -1.0], dropout=[0.5, 0.25])
    assert second.plans is first.plans
    changed = dataclasses.replace(case, scaling=(3.0, -1.0), dropout=(0.5, 0.25))
    played = listed_call(changed, torch.float32, device, second, (0,))
    assert len(first.plans) == 2
    fresh = listed_call(changed, torch.float32, device, changed.routing(device), (0,))
    assert all(torch.equal(played[name], fresh[name]) for name in fresh)
    # without dropout it is another plan, and with sums to add to as well
    listed_call(case, torch.float32, device, first.with_scaling(scaling=[1.0, 1.0], dropout=[0.0, 0.0]), (0,))
    assert len(first.plans) == 4
    values = rounded(case.inputs(), torch.float32, device)
    banked_call(fused_banked_linears, case, values, bank_of(case, values, device, torch.float32), first)
    assert len(first.plans) == 5


def test_a_routing_brings_along_all_that_the_passes_of_earlier_ones_asked_for(
    device: str,
    calls: dict[str, int],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case(
        num_rows=160, num_features=136, out_features=(256, 64), segments=((0, 40, 0), (40, 120, 1)),
        lora_ranks=((4, 8), (16, 3)), dropout=(0.3, 0.0), targets=(5, 5),
    )  # fmt: skip
    wanted = WantedTables()
    asked = listed_call(case, torch.float16, device, case.routing(device, wanted), targets_of(case))
    assert (bool(wanted.tiles), wanted.blocks) == (True, {32})
    routing = case.routing(device, wanted)

    def refuse(*_: object) -> None:
        pytest.fail("a table was sent in the middle of a layer")

    monkeypatch.setattr("loraplex.kernels.tables.to_device", refuse)
    ahead = listed_call(case, torch.float16, device, routing, targets_of(case))
    assert all(torch.equal(ahead[name], asked[name]) for name in asked)
    assert calls == {"forward": 2, "backward": 2}


def test_fresh_random_words_reach_a_plan(device: str) -> None:
    case = CASES["dropout"]
    routing = case.routing(device)
    first, again = (listed_call(case, torch.float32, device, routing, (0,))["y"] for _ in range(2))
    routing.refresh(global_batches=[4])
    assert torch.equal(first, again)
    assert not torch.equal(listed_call(case, torch.float32, device, routing, (0,))["y"], first)


@pytest.mark.parametrize("name", ["dropout", "three targets, a mask each"])
def test_what_the_second_stream_writes_is_made_before_the_fork(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forks = []

    @contextlib.contextmanager
    def forked(tape: Tape, *, enabled: bool) -> Iterator[contextlib.AbstractContextManager[None]]:
        forks.append(enabled)
        yield tape._aside()

    # as on a GPU, where `Tape.empty` refuses to make memory behind a fork
    monkeypatch.setattr(Tape, "side", forked)
    monkeypatch.setattr("loraplex.kernels.tape.side_stream", lambda _: SimpleNamespace(cuda_stream=0))
    listed_call(CASES[name], torch.float32, "cpu", CASES[name].routing(), targets_of(CASES[name]))
    assert len(forks) == 1


def test_memory_made_behind_a_fork_is_refused() -> None:
    tape = Tape([], num_words=0, device=torch.device("cpu"))
    with tape._aside(), pytest.raises(AssertionError, match="after the fork"):
        tape.empty((2,), torch.float32)


def test_what_kernels_alone_see_is_one_allocation() -> None:
    case = CASES["three targets, a mask each"]
    routing = case.routing()
    fresh = listed_call(case, torch.float32, "cpu", routing, targets_of(case))
    forward, backward = routing.plans.values()
    rooms = [[step for step in plan.steps if isinstance(step, Room)] for plan in (forward, backward)]
    made = [[step.slot for step in plan.steps if isinstance(step, Empty)] for plan in (forward, backward)]
    # apart from what a call returns, and what the library's GEMM is given, nothing is made by itself
    assert made == [[slot for slot in plan.outputs if slot is not None] for plan in (forward, backward)]
    # the forward of so small a call has nothing of the kind; the backward dS, and the shares of dA and of dB
    assert [[len(room.places) for room in found] for found in rooms] == [[], [3]]
    played = listed_call(case, torch.float32, "cpu", routing, targets_of(case))
    assert all(torch.equal(played[name], fresh[name]) for name in fresh)


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple),
            st.sampled_from([torch.float32, torch.bfloat16]),
            st.booleans(),
        ),
        max_size=6,
    )
)
def test_places_in_a_room_are_apart_and_aligned(made: list[tuple[tuple[int, ...], torch.dtype, bool]]) -> None:
    steps = [Empty(slot=slot, shape=shape, dtype=dtype) for slot, (shape, dtype, _) in enumerate(made)]
    seen: set[int | None] = {None, *[slot for slot, (_, _, used) in enumerate(made) if used]}
    found = with_room(steps, seen, slot=len(made))
    assert [step for step in found if isinstance(step, Empty)] == [step for step in steps if step.slot in seen]
    places = [place for step in found if isinstance(step, Room) for place in step.places]
    assert [place.slot for place in places] == [step.slot for step in steps if step.slot not in seen]
    end = 0
    for place in places:
        assert place.first_byte >= end
        assert place.first_byte % ROOM_ALIGNMENT_BYTES == 0
        end = place.first_byte + math.prod(place.shape) * place.dtype.itemsize
    assert all(end <= step.num_bytes for step in found if isinstance(step, Room))


def test_a_compiled_kernel_is_given_addresses_in_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraplex.kernels.steps.INTERPRETED", False)
    made = [Empty(slot=slot, shape=(3, 5), dtype=torch.bfloat16) for slot in (0, 1)]
    (room,) = with_room(made, {None}, slot=2)
    playing = Run(values=[None] * 3, pointers=[None] * 3, device=torch.device("cpu"), stream=0)
    room(playing)
    whole = playing.values[2]
    assert playing.pointers[:2] == [whole.data_ptr(), whole.data_ptr() + ROOM_ALIGNMENT_BYTES]
    assert whole.nbytes == 2 * ROOM_ALIGNMENT_BYTES


def test_a_tensor_that_comes_twice_is_told_apart() -> None:
    tensor = torch.zeros(3)
    one, none, other = distinct([tensor, None, tensor])
    assert one is tensor
    assert none is None
    assert other is not tensor
    assert other.data_ptr() == tensor.data_ptr()


def test_the_output_gradient_may_be_the_input_itself(device: str) -> None:
    case = dataclasses.replace(CASES["one adapter"], out_features=(96,))
    values = rounded(case.inputs(), torch.float32, device)
    values["dy"] = values["x"]
    routing = case.routing(device)
    found = run(fused.fused_linears, values, routing=routing, targets=(0,))
    apart = rounded(case.inputs(), torch.float32, device)
    apart["dy"] = apart["x"].detach().clone()
    for other in (routing, case.routing(device)):
        apart["x"].grad = None
        wanted = run(fused.fused_linears, apart, routing=other, targets=(0,))
        assert torch.equal(found["x"], wanted["x"])


@pytest.mark.gpu
def test_misaligned_tensors_are_served_without_a_plan() -> None:
    case = dataclasses.replace(CASES["one adapter"], num_rows=64, segments=((0, 64, 0),))
    routing = case.routing("cuda")
    values = rounded(case.inputs(), torch.bfloat16, "cuda")
    plain = run(fused.fused_linears, values, routing=routing, targets=(0,))
    shifted = rounded(case.inputs(), torch.bfloat16, "cuda")
    buffer = torch.empty(64 * 96 + 1, dtype=torch.bfloat16, device="cuda")
    x = buffer[1:].view(64, 96).copy_(shifted["x"].detach()).requires_grad_()
    assert pointers_of([x])[1] is False
    shifted["x"] = x
    found = run(fused.fused_linears, shifted, routing=routing, targets=(0,))
    for name in plain:
        torch.testing.assert_close(found[name], plain[name], rtol=2e-2, atol=2e-2)
