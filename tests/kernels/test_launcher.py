"""Triton's C launcher is given what Triton's own Python gives it, whoever fills the descriptors."""

import functools
from typing import Any

import pytest
import torch

from loraplex.kernels import launcher
from loraplex.kernels.launcher import At, launcher_of, rebased

triton = pytest.importorskip("triton")
TensorDescriptor = pytest.importorskip("triton.tools.tensor_descriptor").TensorDescriptor
driver = pytest.importorskip("triton.backends.nvidia.driver")

KNOWN = pytest.mark.skipif(
    not triton.__version__.startswith((launcher.FLAT, launcher.PACKED)), reason="this Triton launches by its own Python"
)
SIGNATURE = {0: "tensordesc<bf16[16,16]>", 1: "*fp32", 2: "tensordesc<bf16[16,32]>", 3: "i32", 4: "constexpr"}
GIVEN = (7, "metadata")


def tritons(called: list[Any], *, described: bool = True, **more: Any) -> Any:
    """Triton's launcher of a kernel that no GPU has loaded, around a C launcher that remembers its arguments."""

    def launch(*arguments: Any) -> None:
        called.append(tuple(list(one) if isinstance(one, tuple) else one for one in arguments))

    run = object.__new__(driver.CudaLauncher)
    sizes = ("global_scratch_size", "global_scratch_align", "profile_scratch_size", "profile_scratch_align")
    facts: dict[str, Any] = {
        **dict.fromkeys(sizes, 0),
        "num_ctas": 1,
        "launch_cooperative_grid": False,
        "launch_pdl": True,
    }
    signature = SIGNATURE if described else {0: "*fp32", 1: "i32"}
    facts |= {"arg_annotations": ["kinds"], "kernel_signature": b"signature"}
    # the real one is no Python function
    facts["launch"] = driver.wrap_handle_tensordesc(
        functools.partial(launch), signature, ["first", "second"] if described else None
    )
    for name, value in (facts | more).items():
        setattr(run, name, value)
    return run


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Descriptors are filled without a GPU; what was filled."""
    made: list[Any] = []

    def fill(tile: Any, meta: Any) -> list[Any]:
        made.append((meta, tile.base.data_ptr()))
        return [("map", meta, tile.base.data_ptr(), *tile.shape), *tile.shape, *tile.strides]

    monkeypatch.setattr(driver, "make_tensordesc_arg", fill)
    return made


@KNOWN
def test_a_kernel_with_descriptors_is_launched_as_triton_does(filled: list[Any]) -> None:
    tensors = [torch.zeros(32, 64, dtype=torch.bfloat16) for _ in range(3)]
    one, two, three = (
        TensorDescriptor.from_tensor(tensor, [16, width]) for tensor, width in zip(tensors, (16, 32, 32), strict=True)
    )
    called: list[Any] = []
    run = tritons(called)
    direct = launcher_of(run, *GIVEN)
    assert direct.fills is not None
    for tile in (two, three, two):
        run(1, 2, 3, 99, *GIVEN, None, None, None, one, 1234, tile, 5, 6)
    wanted, called[:] = called.copy(), []
    filled.clear()
    for tensor in (tensors[1], tensors[2], tensors[1]):
        arguments = []
        for position, (tile, base) in enumerate(((one, tensors[0]), (two, tensor))):
            arguments += [direct.descriptors(position, tile).at(base.data_ptr()), *tile.shape, *tile.strides]
        direct.start(1, 2, 3, 99, [*arguments[:5], 1234, *arguments[5:], 5, 6])
    assert called == wanted
    # each once: nothing but the address tells tensors of one shape apart
    assert filled == [("first", tensors[0].data_ptr()), *[("second", tensor.data_ptr()) for tensor in tensors[1:]]]


@KNOWN
def test_a_kernel_of_plain_addresses_is_launched_as_triton_does() -> None:
    called: list[Any] = []
    run = tritons(called, described=False)
    run(1, 2, 3, 99, *GIVEN, None, None, None, 1234, 5)
    direct = launcher_of(run, *GIVEN)
    assert direct.fills == ()
    direct.start(1, 2, 3, 99, [1234, 5])
    assert called[0] == called[1]


@pytest.mark.parametrize(
    ("version", "more"),
    [
        ("99.0.0", {}), (triton.__version__, {"global_scratch_size": 128}),
        (triton.__version__, {"profile_scratch_size": 8}), (triton.__version__, {"launch": lambda *arguments: None}),
    ],
)  # fmt: skip
def test_what_is_not_known_is_launched_by_triton(
    version: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "__version__", version)
    run = tritons([], **more)
    seen: list[Any] = []
    monkeypatch.setattr(type(run), "__call__", lambda self, *arguments: seen.append(arguments))
    chosen = launcher_of(run, *GIVEN)
    assert chosen.fills is None
    chosen.start(1, 2, 3, 99, ["tile", 5])
    assert seen == [(1, 2, 3, 99, *GIVEN, None, None, None, "tile", 5)]


def test_a_launcher_of_another_version_is_not_asked_for_what_it_may_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "__version__", "99.0.0")
    assert launcher_of(object.__new__(driver.CudaLauncher), *GIVEN).fills is None


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "MOST_KEPT", 2)
    monkeypatch.setattr(launcher, "MOST_SHAPES", 2)
    tile = TensorDescriptor.from_tensor(torch.zeros(32, 64), [16, 16])
    kept = launcher.Descriptors(tile=rebased(tile, None), fill=lambda tile: tile.base.data_ptr() + 1)
    assert [kept.at(address) for address in (16, 32, 16, 48, 16)] == [17, 33, 17, 49, 17]
    assert set(kept.made) == {48, 16}
    whole = launcher.Launcher(start=lambda *arguments: None, fills=(lambda tile: 0,))
    shapes = [TensorDescriptor.from_tensor(torch.zeros(rows, 64), [16, 16]) for rows in (16, 32, 16, 48)]
    found = [whole.descriptors(0, shape) for shape in shapes]
    assert found[0] is found[2]
    assert len(whole.kept) == 1
    assert At(address=5).data_ptr() == 5
