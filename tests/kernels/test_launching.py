"""Compiled kernels are found again by a key of our own, which must never be coarser than Triton's."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraplex.kernels import launching, rms_norm_kernel, rope_kernel, swiglu_kernel
from loraplex.kernels.launching import kind

triton = pytest.importorskip("triton")

EDGES = [-(2**31) - 1, -(2**31), -16, -1, 0, 1, 2, 15, 16, 17, 2**31 - 1, 2**31, 2**31 + 16, 2**63 - 1]
NUMBERS = st.sampled_from(EDGES) | st.integers(-(2**63), 2**63 - 1) | st.integers(0, 2**20).map(lambda n: 16 * n)
POOL = torch.zeros(64)
TENSORS = st.builds(
    lambda dtype, offset: POOL.view(dtype)[offset:],
    st.sampled_from([torch.float32, torch.bfloat16, torch.int32, torch.uint8]),
    st.integers(0, 32),
)
ARGUMENTS = st.one_of(NUMBERS, TENSORS, st.booleans(), st.floats(), st.none())


def tritons_kind(argument: Any) -> Any:
    """What Triton specialises on, by its own function."""
    specialize = pytest.importorskip("triton._C.libtriton").native_specialize_impl
    backend = pytest.importorskip("triton.backends.nvidia.compiler").CUDABackend
    return specialize(backend, argument, False, True, True)


@given(ARGUMENTS, ARGUMENTS)
def test_what_is_one_kind_to_us_is_one_kind_to_triton(one: Any, other: Any) -> None:
    if kind(one) == kind(other):
        assert tritons_kind(one) == tritons_kind(other)


@given(st.lists(NUMBERS, min_size=2, max_size=40))
def test_numbers_of_one_kind_share_a_kernel_and_their_values_make_no_more_of_them(numbers: list[int]) -> None:
    found: dict[Any, set[Any]] = {}
    for number in numbers:
        found.setdefault(kind(number), set()).add(tritons_kind(number))
    assert all(len(kinds) == 1 for kinds in found.values())
    assert len(found) <= 8


class Compiled:
    def __init__(self, launched: list[Any]) -> None:
        self.launched = launched

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, stream: self.launched.append((grid, arguments, stream))


class Kernel:
    """Stands for a jitted kernel: counts how often it is asked to compile."""

    arg_names = ("x_ptr", "size", "B")

    def __init__(self) -> None:
        self.compiled: list[Any] = []
        self.launched: list[Any] = []

    def warmup(self, *bound: Any, grid: tuple[int, ...], **options: Any) -> Compiled:
        self.compiled.append((bound, grid, options))
        return Compiled(self.launched)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(launching, "INTERPRETED", False)
    monkeypatch.setattr(launching, "_COMPILED", {})
    return Kernel()


def launch(kernel: Kernel, x: torch.Tensor, size: int, *, block: int = 8, num_warps: int = 4) -> None:
    launching.launch(
        kernel, (size, 2), x, size, device=torch.device("cpu"), constants={"B": block}, options={"num_warps": num_warps}
    )


def test_a_kernel_is_compiled_once_for_all_arguments_of_a_kind(kernel: Kernel) -> None:
    for size in (33, 35, 999):
        launch(kernel, POOL, size)
    assert len(kernel.compiled) == 1
    assert kernel.launched == [((size, 2, 1), (POOL, size, 8), 0) for size in (33, 35, 999)]


def test_another_kind_constant_or_option_is_another_kernel(kernel: Kernel) -> None:
    launch(kernel, POOL, 33)
    launch(kernel, POOL, 32)
    launch(kernel, POOL[1:], 33)
    launch(kernel, POOL.to(torch.float64), 33)
    launch(kernel, POOL, 33, block=16)
    launch(kernel, POOL, 33, num_warps=8)
    assert len(kernel.compiled) == 6


@pytest.mark.parametrize("module", [rms_norm_kernel, rope_kernel, swiglu_kernel])
def test_constants_stand_behind_the_arguments(module: Any) -> None:
    for name in ("forward_kernel", "backward_kernel"):
        jitted = getattr(module, name)
        constant = [parameter.is_constexpr for parameter in getattr(jitted, "params", [])]
        assert constant == sorted(constant)
