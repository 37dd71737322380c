"""The frozen product that carries the LoRA product with it, through the interpreter's tensor descriptors."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

from loraplex.kernels import fused, gemm, tiles
from loraplex.kernels.layout import DEFAULT_CONFIG, GemmConfig
from loraplex.tests.kernels.cases import Case, expected, relative_errors, rounded, run, targets_of

CONFIG = dataclasses.replace(
    DEFAULT_CONFIG,
    gemm=GemmConfig(rows=32, columns=256, depth=64, bands=2, num_warps=4, num_stages=2),
    shrink=dataclasses.replace(DEFAULT_CONFIG.shrink, columns=32),
    room_bytes=37000,
)
CASES = {
    "one adapter": Case(
        num_rows=130, num_features=128, out_features=(192,), segments=((0, 130, 0),), lora_ranks=((16,),),
        dropout=(0.0,),
    ),
    "borders inside blocks": Case(
        num_rows=600, num_features=136, out_features=(128,), segments=((0, 193, 0), (193, 200, 2), (393, 190, 1)),
        lora_ranks=((16, 9, 3),), dropout=(0.0, 0.0, 0.0), bias=True,
    ),
    "three targets": Case(
        num_rows=256, num_features=128, out_features=(256, 256, 64), segments=((0, 96, 1), (96, 150, 0)),
        lora_ranks=((4, 8), (4, None), (9, 2)), dropout=(0.0, 0.0), bias=True,
    ),
    "dropout": Case(
        num_rows=600, num_features=328, out_features=(256,), segments=((0, 193, 1), (193, 400, 0)),
        lora_ranks=((4, 8),), dropout=(0.3, 0.6),
    ),
    "dropout, one mask for two targets": Case(
        num_rows=256, num_features=256, out_features=(256, 64), segments=((0, 96, 1), (96, 160, 0)),
        lora_ranks=((4, 8), (16, 3)), dropout=(0.3, 0.0), targets=(5, 5),
    ),
    "dropout, two masks": Case(
        num_rows=64, num_features=128, out_features=(256, 64), segments=((0, 64, 0),),
        lora_ranks=((4,), (16,)), dropout=(0.3,), targets=(5, 6),
    ),
}  # fmt: skip


def can_use_tma_anywhere(*matrices: Tensor) -> bool:
    return all(m.element_size() == 2 and m.stride(0) % 8 == 0 for m in matrices)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, device: str) -> dict[str, int]:
    """How often each product was taken; on the CPU the interpreter stands in for the copy engine."""
    counted = {"forward": 0, "backward": 0}
    monkeypatch.setattr(fused, "choose_config", lambda *_, **__: CONFIG)
    monkeypatch.setattr(gemm, "LEAST_FILL", 0.0)
    if device == "cpu":
        for module in (gemm, tiles):
            monkeypatch.setattr(module, "can_use_tma", can_use_tma_anywhere)
    import loraplex.kernels.passes as passes

    for direction in counted:
        launch = getattr(gemm, f"fused_{direction}")

        def counting(
            *args: object, launch: Callable[..., None] = launch, direction: str = direction, **kwargs: object
        ) -> None:
            counted[direction] += 1
            launch(*args, **kwargs)

        monkeypatch.setattr(passes, f"fused_{direction}", counting)
    return counted


@pytest.mark.parametrize("name", CASES)
def test_the_fused_product_is_the_references(name: str, device: str, calls: dict[str, int]) -> None:
    case, dtype = CASES[name], torch.float16
    values = rounded(case.inputs(), dtype, device)
    weight = torch.cat(values["weights"])
    values["weights"] = list(torch.split(weight, list(case.out_features)))
    found = run(fused.fused_linears, values, routing=case.routing(device), targets=targets_of(case))
    errors = relative_errors(found, expected(case, dtype))
    assert {which: error for which, error in errors.items() if not error < 2e-3} == {}
    assert calls == {"forward": 1, "backward": 0 if name == "dropout, two masks" else 1}


@pytest.mark.parametrize("where", ["x", "lora_b"])
def test_a_block_of_two_owners_keeps_nan_apart(
    where: Literal["x", "lora_b"], device: str, calls: dict[str, int]
) -> None:
    case = CASES["borders inside blocks"]
    values = case.inputs()
    if where == "x":
        values["x"][200] = float("nan")
    else:
        matrix = values["lora_b"][0][2]
        assert matrix is not None
        matrix[:] = float("nan")
    found = run(fused.fused_linears, rounded(values, torch.float16, device), routing=case.routing(device), targets=(0,))
    others = torch.ones(600, dtype=torch.bool)
    others[193:393] = False
    assert torch.isfinite(found["y"][others]).all()
    assert torch.isfinite(found["x"][others]).all()
    assert all(torch.isfinite(found[f"lora_{m} 0 {a}"]).all() for m in "ab" for a in (0, 1))


def test_a_product_that_leaves_much_of_the_chip_idle_is_the_librarys(
    device: str, calls: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gemm, "LEAST_FILL", 0.9)
    monkeypatch.setattr(gemm, "num_multiprocessors", lambda _: 4)
    # tiles of 32 x 256: forward 5 x 3 on 4 processors, 15 of 16 places taken; backward 5 x 1, 5 of 8
    case = Case(
        num_rows=160, num_features=64, out_features=(768,), segments=((0, 160, 0),), lora_ranks=((4,),), dropout=(0.0,)
    )
    found = run(
        fused.fused_linears, rounded(case.inputs(), torch.float16, device), routing=case.routing(device), targets=(0,)
    )
    errors = relative_errors(found, expected(case, torch.float16))
    assert {which: error for which, error in errors.items() if not error < 2e-3} == {}
    assert calls == {"forward": 1, "backward": 0}


def test_many_short_segments_go_to_the_librarys_product(device: str, calls: dict[str, int]) -> None:
    case = Case(
        num_rows=160, num_features=64, out_features=(64,), segments=tuple((10 * a, 10, a) for a in range(16)),
        lora_ranks=((4,) * 16,), dropout=(0.0,) * 16,
    )  # fmt: skip
    found = run(
        fused.fused_linears, rounded(case.inputs(), torch.float16, device), routing=case.routing(device), targets=(0,)
    )
    errors = relative_errors(found, expected(case, torch.float16))
    assert {which: error for which, error in errors.items() if not error < 2e-3} == {}
    assert calls == {"forward": 0, "backward": 0}
