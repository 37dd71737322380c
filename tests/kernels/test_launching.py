"""Compiled kernels are found again by a key of our own, which must never be coarser than Triton's."""

import importlib
import inspect
import pkgutil
import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraplex import kernels
from loraplex.kernels import launching
from loraplex.kernels.launching import kind
from loraplex.kernels.sizes import ceil_div, next_power_of_2

triton = pytest.importorskip("triton")
TensorDescriptor = pytest.importorskip("triton.tools.tensor_descriptor").TensorDescriptor

EDGES = [-(2**31) - 1, -(2**31), -16, -1, 0, 1, 2, 15, 16, 17, 2**31 - 1, 2**31, 2**31 + 16, 2**63 - 1]
NUMBERS = st.sampled_from(EDGES) | st.integers(-(2**63), 2**63 - 1) | st.integers(0, 2**20).map(lambda n: 16 * n)
POOL = torch.zeros(64)
TENSORS = st.builds(
    lambda dtype, offset: POOL.view(dtype)[offset:],
    st.sampled_from([torch.float32, torch.bfloat16, torch.int32, torch.uint8]),
    st.integers(0, 32),
)
DESCRIPTORS = st.builds(
    lambda dtype, shape, padding: TensorDescriptor.from_tensor(
        torch.zeros(32, 32, dtype=dtype), list(shape), padding=padding
    ),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([(16, 16), (16, 32), (32, 16)]),
    st.sampled_from(["zero", "nan"]),
)
ARGUMENTS = st.one_of(NUMBERS, TENSORS, DESCRIPTORS, st.booleans(), st.floats(), st.none())


def tritons_kind(argument: Any) -> Any:
    """What Triton specialises on, by its own function."""
    specialize = pytest.importorskip("triton._C.libtriton").native_specialize_impl
    backend = pytest.importorskip("triton.backends.nvidia.compiler").CUDABackend
    return specialize(backend, argument, False, True, True)


@given(ARGUMENTS, ARGUMENTS)
def test_what_is_one_kind_to_us_is_one_kind_to_triton(one: Any, other: Any) -> None:
    if kind(one) == kind(other):
        assert tritons_kind(one) == tritons_kind(other)


@given(st.data(), st.lists(ARGUMENTS, min_size=1, max_size=8))
def test_lists_of_one_key_are_specialised_alike(data: st.DataObject, arguments: list[Any]) -> None:
    others = [data.draw(st.one_of(st.just(argument), NUMBERS, TENSORS, DESCRIPTORS)) for argument in arguments]
    # where the kinds differ the first list's argument stands in, so that every drawn pair of lists has one key
    others = [
        other if kind(other) == kind(argument) else argument for argument, other in zip(arguments, others, strict=True)
    ]
    assert [*map(kind, others)] == [*map(kind, arguments)]
    assert [*map(tritons_kind, others)] == [*map(tritons_kind, arguments)]


@given(st.lists(NUMBERS, min_size=2, max_size=40))
def test_numbers_of_one_kind_share_a_kernel_and_their_values_make_no_more_of_them(numbers: list[int]) -> None:
    found: dict[Any, set[Any]] = {}
    for number in numbers:
        found.setdefault(kind(number), set()).add(tritons_kind(number))
    assert all(len(kinds) == 1 for kinds in found.values())
    assert len(found) <= 8


class Compiled:
    """As Triton's: its `function` is there once somebody asked for `run`."""

    packed_metadata = "metadata"
    function: int | None = None

    def __init__(self, launched: list[Any]) -> None:
        self.launched = launched

    @property
    def run(self) -> Any:
        self.function = 7
        return lambda *given: self.launched.append(given)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *given, stream: self.launched.append(("watched", grid, given, stream))


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
    monkeypatch.setattr(launching, "_LOADED", {})
    return Kernel()


def launch(kernel: Kernel, x: torch.Tensor, size: int, *, block: int = 8, num_warps: int = 4) -> None:
    launching.launch(
        kernel, (size, 2), x, size, device=torch.device("cpu"), constants={"B": block}, options={"num_warps": num_warps}
    )


def test_a_kernel_is_compiled_once_for_all_arguments_of_a_kind(kernel: Kernel) -> None:
    for size in (33, 35, 999):
        launch(kernel, POOL, size)
    assert len(kernel.compiled) == 1
    nobody = (None, None, None)
    assert kernel.launched == [
        (size, 2, 1, 0, 7, "metadata", *nobody, POOL.data_ptr(), size, 8) for size in (33, 35, 999)
    ]


def test_a_profiler_that_hooks_into_launches_sees_them(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = type(triton.knobs.runtime.launch_enter_hook)()
    monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", chain)
    launch(kernel, POOL, 33)
    chain.add(print)
    launch(kernel, POOL, 33)
    assert [launched[0] for launched in kernel.launched] == [33, "watched"]
    assert len(kernel.compiled) == 1


def test_threads_that_come_together_load_a_kernel_once(kernel: Kernel) -> None:
    together = threading.Barrier(4)

    def first() -> None:
        together.wait()
        launch(kernel, POOL, 33)

    threads = [threading.Thread(target=first) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kernel.compiled) == 1
    assert [launched[4] for launched in kernel.launched] == [7] * 4


def test_another_kind_constant_or_option_is_another_kernel(kernel: Kernel) -> None:
    launch(kernel, POOL, 33)
    launch(kernel, POOL, 32)
    launch(kernel, POOL[1:], 33)
    launch(kernel, POOL.to(torch.float64), 33)
    launch(kernel, POOL, 33, block=16)
    launch(kernel, POOL, 33, num_warps=8)
    assert len(kernel.compiled) == 6


def all_kernels() -> dict[str, Any]:
    """Every kernel of the package by module and name, launched by `launch` or recorded by a tape."""
    found = {}
    for module in pkgutil.iter_modules(kernels.__path__, f"{kernels.__name__}."):
        for name, one in vars(importlib.import_module(module.name)).items():
            if name.endswith("_kernel") and hasattr(one, "fn"):
                found[f"{module.name}.{name}"] = one.fn
    return found


def test_constants_stand_behind_the_arguments() -> None:
    found = all_kernels()
    assert len({function.__name__ for function in found.values()}) >= 10
    for name, function in found.items():
        constant = ["constexpr" in str(one.annotation) for one in inspect.signature(function).parameters.values()]
        assert constant == sorted(constant), name
        assert any(constant) or name.endswith("ordered_sum_kernel"), name


@given(st.integers(1, 2**40), st.integers(1, 2**20))
def test_sizes_are_what_triton_takes_them_for(value: int, by: int) -> None:
    assert ceil_div(value, by) == triton.cdiv(value, by)
    assert next_power_of_2(value) == triton.next_power_of_2(value)
