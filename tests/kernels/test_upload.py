"""Host data to a device in one copy, each tensor where a kernel may read it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from loraplex.kernels.routing import Routing, Segment
from loraplex.kernels.upload import HostArray, joined, split, to_device, write
from loraplex.tests.kernels.copies import Copies


def various() -> list[HostArray]:
    return [
        np.arange(5, dtype=np.int32),
        np.zeros((0, 4), dtype=np.int32),
        np.arange(6.0).reshape(2, 3),
        np.array(True),
        np.arange(7)[None],
    ]


def test_tensors_lie_one_after_another_from_multiples_of_16_bytes_on() -> None:
    buffer = joined(various())
    assert buffer.nbytes == 32 + 0 + 48 + 16 + 64
    found = split(buffer, various())
    assert [place.storage_offset() * place.element_size() for place in found] == [0, 32, 32, 80, 96]
    for place, array in zip(found, various(), strict=True):
        assert place.is_contiguous()
        assert (place.dtype, place.tolist()) == (torch.from_numpy(array).dtype, array.tolist())


def test_they_travel_in_one_copy_and_what_is_there_stays() -> None:
    there = torch.empty(3, device="meta")
    with Copies() as copies:
        one, same, other = to_device([np.zeros(5, np.float32), there, np.zeros((2, 3), np.int64)], "meta")
    assert copies.num_bytes == [32 + 48]
    assert same is there
    assert (one.shape, one.dtype, one.device.type) == ((5,), torch.float32, "meta")
    assert (other.shape, other.dtype, other.device.type) == ((2, 3), torch.int64, "meta")


def test_on_a_cpu_they_are_copies_of_their_own() -> None:
    arrays = various()
    found = to_device(arrays, "cpu")
    wanted = [array.tolist() for array in arrays]
    for array in arrays:
        array[...] = 0
    assert [tensor.tolist() for tensor in found] == wanted
    assert to_device([], "meta") == ()


def sent_behind_a_stall() -> tuple[list[tuple[Tensor, ...]], bool]:
    """(20 times two tensors that hold 0, 1, ...; whether the GPU had come to none of it when all was sent)."""
    torch.cuda.synchronize()
    torch.cuda._sleep(2 * 10**9)  # type: ignore[no-untyped-call]
    stalled = torch.cuda.Event()  # type: ignore[no-untyped-call]
    stalled.record()
    target = torch.zeros(1000, dtype=torch.int64, device="cuda")
    sent: list[tuple[Tensor, ...]] = []
    for number in range(0, 20, 2):
        sent.append(to_device([np.full(1000, number), np.array([number])], "cuda"))
        write(target, torch.full((1000,), number + 1))
        sent.append((target.clone(), target[:1].clone()))
    return sent, not stalled.query()  # type: ignore[no-untyped-call]


@pytest.mark.gpu
def test_nobody_waits_and_pinned_memory_is_kept_until_it_has_been_read() -> None:
    # The first time pinned memory is allocated, for which the driver may wait.
    sent_behind_a_stall()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sent, ahead = sent_behind_a_stall()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert ahead
    for number, tensors in enumerate(sent):
        assert [set(tensor.tolist()) for tensor in tensors] == [{number}] * 2
        assert all(tensor.data_ptr() % 16 == 0 for tensor in tensors)


@pytest.mark.gpu
def test_nothing_is_sent_under_graph_capture() -> None:
    graph = torch.cuda.CUDAGraph()
    routing = Routing.build(
        num_rows=64, segments=[Segment(first_row=0, num_rows=64, adapter=0)], scaling=[1.0], dropout=[0.0], seeds=[0],
        global_batches=[0], device="cuda",
    )  # fmt: skip
    made = routing.tiles(32)
    messages = []
    with torch.cuda.graph(graph):
        assert routing.tiles(32) is made
        for send in (lambda: routing.tiles(16), lambda: routing.refresh(global_batches=[1])):
            with pytest.raises(RuntimeError, match="run the same call once before the capture") as caught:
                send()
            messages.append(str(caught.value))
        made.table.clone()
    assert len(set(messages)) == 1
