"""torch's attention is called below its wrapper just as the wrapper would, and through it where torch has changed."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.utils._python_dispatch import TorchDispatchMode

from loraplex.engine import torch_attention as module
from loraplex.engine.torch_attention import flash_operator, is_known, torch_attention

LENGTHS = (1, 127, 128, 129, 300)
POSITIONAL = (
    "Tensor query, Tensor key, Tensor value, Tensor? cum_seq_q, Tensor? cum_seq_k, SymInt max_q, SymInt max_k, "
    "float dropout_p, bool is_causal, bool return_debug_mask"
)
OPTIONS = "float? scale=None, SymInt? window_size_left=None, SymInt? window_size_right=None"
RETURNS = "(Tensor output, Tensor softmax_logsumexp, Tensor rng_state, Tensor unused, Tensor debug_attn_mask)"


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    flash_operator.cache_clear()
    yield
    flash_operator.cache_clear()


class FlashCalls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Stands in for the two operators' kernels, which only GPUs have, and notes what they were called with."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        given = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | (kwargs or {})
        if name == "aten::_flash_attention_forward":
            self.calls.append((name, given))
            query = given["query"]
            state = torch.zeros(2, dtype=torch.uint64)
            return query + 1, query.new_zeros(query.shape[1::-1], dtype=torch.float32), state, state, query[:0]
        if name == "aten::_flash_attention_backward":
            self.calls.append((name, given))
            return tuple(given[each] * given["grad_out"].sum() for each in ("query", "key", "value"))
        if name.startswith("torch_attn::"):
            wrapper = getattr(varlen, name.removeprefix("torch_attn::"))
            with self:  # to see what the wrapper's body calls
                return wrapper._init_fn(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def comparable(given: dict[str, Any]) -> dict[str, Any]:
    """Without defaults, and the state of a generator that nobody draws from; tensors as lists."""
    asked = {name: value for name, value in given.items() if value is not None and name not in ("rng_state", "unused")}
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in asked.items()}


def attend(*, back: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The output, and the gradients of query, key and value, with two heads of keys for eight of queries."""
    generator = torch.Generator(device).manual_seed(0)
    query, key, value, grad = (
        torch.randn(sum(LENGTHS), heads, 64, device=device, generator=generator).to(dtype) for heads in (8, 2, 2, 8)
    )
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
    ends = torch.tensor([0, *LENGTHS], device=device).cumsum(0, dtype=torch.int32)
    output = torch_attention(*leaves, cumulative_lengths=ends, longest=max(LENGTHS), scaling=0.1, back=back)
    return [output, *torch.autograd.grad(output, leaves, grad)]


@pytest.mark.parametrize("back", [-1, 63])
def test_both_ways_call_the_same_operators_with_the_same_values(monkeypatch: pytest.MonkeyPatch, back: int) -> None:
    found = []
    for direct in (True, False):
        if not direct:
            monkeypatch.setattr(module, "flash_operator", lambda: None)
        assert (module.flash_operator() is not None) is direct
        with FlashCalls() as seen:
            results = attend(back=back)
        assert [name for name, _ in seen.calls] == ["aten::_flash_attention_forward", "aten::_flash_attention_backward"]
        found.append(([comparable(given) for _, given in seen.calls], [tensor.tolist() for tensor in results]))
    direct_way, public_way = found
    assert direct_way == public_way
    (forward, _), _ = direct_way
    assert (forward["is_causal"], forward["window_size_left"], forward["window_size_right"]) == (back == -1, back, 0)


@pytest.mark.parametrize(
    ("schema", "known"),
    [
        (f"{POSITIONAL}, *, {OPTIONS}, Tensor? seqused_k=None, Tensor? alibi_slopes=None", True),  # torch 2.11
        (f"{POSITIONAL}, *, {OPTIONS}, Tensor? block_table=None, int? num_splits=None", True),  # more, with defaults
        (f"{POSITIONAL}, Tensor bias, *, {OPTIONS}", False),
        (f"{POSITIONAL.replace('max_q', 'philox_seed')}, *, {OPTIONS}", False),
        (f"{POSITIONAL}, *, float? scale=None", False),
    ],
)
def test_an_operator_is_known_by_its_schema(schema: str, known: bool) -> None:
    parsed = torch._C.parse_schema(f"aten::_flash_attention_forward({schema}) -> {RETURNS}")
    assert is_known(with_schema(parsed, torch.ops.aten._flash_attention_forward.default)) is known


def with_schema(schema: Any, call: Any) -> Any:
    class Operator(SimpleNamespace):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return call(*args, **kwargs)

    return Operator(_schema=schema)


def test_an_operator_without_a_derivative_or_one_that_refuses_is_left_alone() -> None:
    real = torch.ops.aten._flash_attention_forward.default

    def without(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return real(*args, **kwargs)

    def refusing(*_args: Any, **_kwargs: Any) -> Any:
        raise TypeError("no such argument")

    assert [is_known(with_schema(real._schema, call)) for call in (real, without, refusing)] == [True, False, False]


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_it_is_found_in_validation_too(without_gradients: Any) -> None:
    with without_gradients():
        assert flash_operator() is torch.ops.aten._flash_attention_forward.default


def test_a_torch_with_another_operator_is_called_through_varlen_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = torch._C.parse_schema(f"aten::_flash_attention_forward({POSITIONAL}) -> {RETURNS}")
    operator = torch.ops.aten._flash_attention_forward
    monkeypatch.setattr(operator, "default", with_schema(changed, operator.default))
    assert flash_operator() is None
    with FlashCalls() as seen:
        attend(back=-1)
    assert len(seen.calls) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("back", [-1, 63])
def test_on_a_gpu_both_ways_come_to_the_same_bits(monkeypatch: pytest.MonkeyPatch, back: int) -> None:
    assert flash_operator() is not None
    direct = attend(back=back, device="cuda", dtype=torch.bfloat16)
    monkeypatch.setattr(module, "flash_operator", lambda: None)
    public = attend(back=back, device="cuda", dtype=torch.bfloat16)
    for ours, theirs in zip(direct, public, strict=True):
        assert torch.equal(ours, theirs)


def test_finding_the_operator_saves_nothing_where_saved_tensors_are_counted() -> None:
    # A checkpoint's first forward may be the first to ask, and its recomputation finds the answer there.
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda nothing: nothing):
        assert flash_operator() is not None
    assert saved == []
