"""Routing: what it refuses, the tiles it cuts, and whom it gives each block of rows."""

from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

import pytest
import torch
from torch import Tensor

from loraplex.kernels import multi_lora_linear, multi_lora_linears
from loraplex.kernels.routing import Routing, Segment, WantedTables
from loraplex.tests.kernels.copies import Copies

Triple = tuple[int, int, int]
"""First row, rows, adapter."""


class Changed(TypedDict, total=False):
    """What a call of `build` gives in place of its two adapters' values."""

    num_rows: int
    scaling: list[float]
    dropout: list[float]
    seeds: list[int]
    token_index: list[int] | Tensor


def build(
    *triples: Triple, num_rows: int = 300, scaling: Sequence[float] = (1.0, 2.0), dropout: Sequence[float] = (0.0, 0.1),
    seeds: Sequence[int] = (0, 1), token_index: Sequence[int] | Tensor | None = None, device: str = "cpu",
    wanted: WantedTables | None = None,
) -> Routing:  # fmt: skip
    return Routing.build(
        num_rows=num_rows,
        segments=[Segment(first_row=first, num_rows=rows, adapter=adapter) for first, rows, adapter in triples],
        scaling=scaling,
        dropout=dropout,
        seeds=seeds,
        global_batches=[0, 0],
        token_index=token_index,
        device=device,
        wanted=wanted,
    )


@pytest.mark.parametrize(
    ("triples", "more", "message"),
    [
        ([(0, 10, 0), (9, 5, 1)], {}, r"first_row=9.* begins before row 10"),
        ([(0, 301, 0)], {}, r"ends at row 301, after num_rows = 300"),
        ([(0, 0, 0)], {}, r"num_rows=0.* has no row"),
        ([(0, 5, 2)], {}, r"names adapter 2, but there are 2"),
        ([(-1, 5, 0)], {}, r"first_row=-1.* begins before row 0"),
        ([], {"dropout": [0.0, 1.0]}, r"dropout\[1\] = 1.0 lies outside \[0, 1\)"),
        ([], {"dropout": [-0.1, 0.0]}, r"dropout\[0\] = -0.1 lies outside"),
        ([], {"scaling": [1.0, float("nan")]}, r"scaling\[1\] = nan is not finite"),
        ([], {"seeds": [1]}, r"'seeds': 1.* give them equal lengths"),
        ([], {"token_index": [0, 1]}, r"token_index has shape \(2,\).* give 300 integers"),
        ([], {"token_index": torch.zeros(300)}, r"token_index has dtype torch.float32: give 300 integers"),
        ([], {"num_rows": -1}, r"num_rows = -1 is negative"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_value(triples: list[Triple], more: Changed, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(*triples, **more)


def test_tiles_never_hold_two_owners_and_stand_adapter_by_adapter() -> None:
    tiles = build((3, 130, 1), (133, 64, 0), (197, 65, 1), num_rows=270).tiles(64)
    assert tiles.table[:, :3].tolist() == [
        [133, 197, 0],
        [3, 67, 1], [67, 131, 1], [131, 133, 1], [197, 261, 1], [261, 262, 1],
        [0, 3, -1], [262, 270, -1],
    ]  # fmt: skip
    assert tiles.ranges.tolist() == [[0, 0, 1, 0], [1, 1, 6, 0]]
    assert tiles.num_owners == 2
    assert tiles.most_tiles == 5
    assert tiles.num_owned == 6


def test_blocks_of_one_owner_and_the_rows_beside_them() -> None:
    blocks = build((0, 128, 0), (128, 100, 1), (228, 60, 0), num_rows=300).blocks(64)
    assert blocks.owners.tolist() == [0, 0, 1, -1, -1]
    assert blocks.borders.table[:, :3].tolist() == [[228, 256, 0], [256, 288, 0], [192, 228, 1]]
    assert blocks.num_border_rows == 96


def test_what_one_microbatch_asked_for_comes_with_the_next_in_one_copy() -> None:
    wanted = WantedTables()
    with Copies() as copies:
        first = build((0, 128, 0), (128, 100, 1), device="meta", wanted=wanted)
        tables = (first.tiles(64), first.blocks(128), first.tiles(32))
    assert len(copies.num_bytes) == 4
    assert (first.tiles(64), first.blocks(128), first.tiles(32)) == tables
    assert (wanted.tiles, wanted.blocks) == ({32, 64}, {128})
    with Copies() as copies:
        second = build((0, 40, 1), (40, 3, 0), num_rows=50, device="meta", wanted=wanted)
        found = (second.tiles(64), second.tiles(32), second.blocks(128), second.blocks(128).borders)
    assert len(copies.num_bytes) == 1
    assert {tensor.device.type for table in found for tensor in table.tensors()} == {"meta"}
    with Copies() as copies:
        second.tiles(16)
        second.with_scaling(scaling=[1.0, 1.0], dropout=[0.0, 0.0]).tiles(16)
    # the table, and the other scaling
    assert len(copies.num_bytes) == 2


def test_tables_made_ahead_are_those_made_when_asked_for() -> None:
    wanted = WantedTables(tiles={16, 64}, blocks={64})
    ahead = build((3, 130, 1), (133, 64, 0), wanted=wanted)
    asked = build((3, 130, 1), (133, 64, 0))
    for height in (16, 64):
        one, other = ahead.tiles(height), asked.tiles(height)
        assert [tensor.tolist() for tensor in one.tensors()] == [tensor.tolist() for tensor in other.tensors()]
    own, others = ahead.blocks(64), asked.blocks(64)
    assert [tensor.tolist() for tensor in own.tensors()] == [tensor.tolist() for tensor in others.tensors()]
    assert [tensor.tolist() for tensor in ahead.tensors()[:4]] == [tensor.tolist() for tensor in asked.tensors()[:4]]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_token_indices_that_lie_apart_in_memory_are_read_too(dtype: torch.dtype) -> None:
    every = torch.arange(600, dtype=dtype)
    routing = build((0, 300, 0), token_index=every[::2])
    assert routing.token_index.tolist() == list(range(0, 600, 2))
    routing.refresh(global_batches=[1, 0], token_index=every[1::2])
    assert routing.token_index.tolist() == list(range(1, 600, 2))


@pytest.mark.gpu
def test_a_routing_on_a_gpu_is_the_hosts() -> None:
    wanted = WantedTables(tiles={16, 64}, blocks={64})
    host = build((3, 130, 1), (133, 64, 0), wanted=wanted)
    sent = build((3, 130, 1), (133, 64, 0), wanted=wanted, device="cuda")
    assert [tensor.tolist() for tensor in sent.tensors()] == [tensor.tolist() for tensor in host.tensors()]
    assert sent.tiles(32).table.tolist() == host.tiles(32).table.tolist()


def test_a_refresh_writes_into_the_same_memory() -> None:
    routing = build((0, 300, 0))
    before, address = routing.words.clone(), routing.words.data_ptr()
    routing.refresh(global_batches=[1, 0])
    assert routing.words.data_ptr() == address
    assert (routing.words == before).all(dim=1).tolist() == [False, True]
    with pytest.raises(ValueError, match="global_batches"):
        routing.refresh(global_batches=[1])


class Arguments(TypedDict, total=False):
    """The tensors of one call, or those of them that a test replaces."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    lora_a: list[Tensor | None]
    lora_b: list[Tensor | None]


def arguments(**changed: Unpack[Arguments]) -> Arguments:
    given: Arguments = {
        "x": torch.zeros(300, 8), "weight": torch.zeros(6, 8), "bias": None,
        "lora_a": [torch.zeros(2, 8), None], "lora_b": [torch.zeros(6, 2), None],
    }  # fmt: skip
    return {**given, **changed}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(300, 9)}, r"x has shape \(300, 9\).* must be 8"),
        ({"x": torch.zeros(299, 8)}, r"x has shape \(299, 8\), that is 299 rows, but routing has 300"),
        ({"x": torch.zeros(300, 8).int()}, r"x has dtype torch.int32"),
        ({"weight": torch.zeros(6, 8).half()}, r"weight has dtype torch.float16, but x has torch.float32"),
        ({"weight": torch.zeros(8)}, r"weight has shape \(8,\): give \[N, K\]"),
        ({"bias": torch.zeros(7)}, r"bias has shape \(7,\) on cpu: give \[6\]"),
        ({"bias": torch.zeros(6).int()}, r"bias has dtype torch.int32: give a floating dtype"),
        ({"lora_a": [torch.zeros(2, 8)]}, r"lora_a has 1 and lora_b 2 entries, but routing has 2"),
        ({"lora_a": [None, None]}, r"lora_a\[0\] or lora_b\[0\] is None"),
        ({"lora_a": [torch.zeros(0, 8), None]}, r"lora_a\[0\] has r = 0: r lies between 1 and 256"),
        ({"lora_a": [torch.zeros(257, 8), None]}, r"lora_a\[0\] has r = 257"),
        ({"lora_a": [torch.zeros(2, 7), None]}, r"lora_a\[0\] has shape \(2, 7\): give \[r, 8\]"),
        ({"lora_b": [torch.zeros(6, 3), None]}, r"lora_b\[0\] has shape \(6, 3\): give \[6, 2\]"),
        ({"lora_b": [torch.zeros(6, 2).half(), None]}, r"lora_b\[0\] torch.float16: give one floating dtype"),
        ({"weight": torch.zeros(6, 8, requires_grad=True)}, r"weight requires a gradient: base weights are frozen"),
        ({"x": torch.zeros(300, 8, device="meta")}, r"x is on meta, weight on cpu"),
    ],
)
def test_a_call_that_does_not_fit_is_refused_by_name_and_value(changed: Arguments, message: str) -> None:
    given = arguments(**changed)
    with pytest.raises(ValueError, match=message):
        multi_lora_linear(**given, routing=build((0, 300, 0)), target=0)


def test_without_autograd_nobody_asks_whether_the_weight_is_frozen() -> None:
    given = arguments(weight=torch.zeros(6, 8, requires_grad=True))
    with torch.no_grad():
        multi_lora_linear(**given, routing=build((0, 300, 0)), target=0)


@pytest.mark.parametrize(
    ("target", "message"),
    [("q_proj", "target is 'q_proj', a str: give"), (1.0, "target is 1.0, a float"), (None, "target is None")],
)
def test_a_target_that_is_no_number_is_refused(target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        multi_lora_linear(**arguments(), routing=build((0, 300, 0)), target=target)


def test_lists_of_targets_have_one_length() -> None:
    x, weight = torch.zeros(300, 8), torch.zeros(6, 8)
    with pytest.raises(ValueError, match=r"'targets': 2.* give them equal lengths"):
        multi_lora_linears(x, [weight], [None], [[None] * 2], [[None] * 2], routing=build(), targets=[0, 1])
    with pytest.raises(ValueError, match="weights has 5 entries: one call serves 1 to 4"):
        multi_lora_linears(
            x, [weight] * 5, [None] * 5, [[None] * 2] * 5, [[None] * 2] * 5, routing=build(), targets=range(5)
        )
