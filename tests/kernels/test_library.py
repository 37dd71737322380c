"""The registered operator: opcheck, compilation, recomputation; and gradcheck of the reference."""

import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from loraplex.kernels import fused, library, reference
from loraplex.kernels.routing import Routing
from loraplex.tests.kernels.cases import Case, rounded, run

CASE = Case(
    num_rows=40, num_features=64, out_features=(48, 32), segments=((0, 20, 0), (20, 17, 2)), bias=False,
    lora_ranks=((4, 8, 3), (None, 8, 16)), dropout=(0.2, 0.0, 0.5),
)  # fmt: skip


def registered(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], lora_a: Sequence[Sequence[Tensor | None]],
    lora_b: Sequence[Sequence[Tensor | None]], *, routing: Routing, targets: Sequence[int],
) -> Tensor:  # fmt: skip
    a, b = fused.interleave(lora_a), fused.interleave(lora_b)
    return library.registered_linears(
        x, weights, fused.joined_bias(weights, biases), a, b, routing=routing, targets=targets
    )


def test_opcheck(device: str) -> None:
    # every row has an adapter: rows of S that have none stay unwritten, and opcheck would compare them
    case = dataclasses.replace(CASE, segments=((0, 20, 0), (20, 20, 2)))
    values = rounded(case.inputs(), torch.float32, device)
    routing = case.routing(device)
    a, b = fused.interleave(values["lora_a"]), fused.interleave(values["lora_b"])
    arguments = (
        values["x"], values["weights"], None, [m for m in a if m is not None], [m for m in b if m is not None],
        [0, 2, 3, 4, 5], [0, 1], routing.description, routing.words, routing.thresholds, routing.branch_scale,
        routing.token_index,
    )  # fmt: skip
    torch.library.opcheck(library.multi_lora_forward, arguments)


def test_the_registered_operator_is_the_eager_one_bit_for_bit(device: str) -> None:
    routing = CASE.routing(device)
    eager, by_name = (
        run(linears, rounded(CASE.inputs(), torch.float32, device), routing=routing, targets=(0, 1))
        for linears in (fused.fused_linears, registered)
    )
    assert {name: torch.equal(eager[name], by_name[name]) for name in eager} == dict.fromkeys(eager, True)


def test_a_compiled_call_is_the_eager_one_and_other_segments_need_no_other_graph(device: str) -> None:
    torch._dynamo.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        graphs.append(graph)
        forward: Callable[..., tuple[Tensor, ...]] = graph.forward
        return forward

    compiled = torch.compile(fused.fused_linears, backend=backend, fullgraph=True)
    for segments in (CASE.segments, ((3, 30, 1), (33, 7, 0))):
        case = dataclasses.replace(CASE, segments=segments)
        routing = case.routing(device)
        eager, found = (
            run(linears, rounded(case.inputs(), torch.float32, device), routing=routing, targets=(0, 1))
            for linears in (fused.fused_linears, compiled)
        )
        assert {name: torch.equal(eager[name], found[name]) for name in eager} == dict.fromkeys(eager, True)
    assert len(graphs) == 1


@pytest.mark.parametrize("linears", [fused.fused_linears, reference.multi_lora_linears], ids=["fused", "reference"])
def test_recomputed_activations_draw_the_same_mask(linears: Callable[..., Tensor], device: str) -> None:
    routing = CASE.routing(device)

    def recomputed(x: Tensor, *rest: object, **more: object) -> Tensor:
        y: Tensor = checkpoint(lambda x: linears(x, *rest, **more), x, use_reentrant=False)
        return y

    plain, again = (
        run(function, rounded(CASE.inputs(), torch.float32, device), routing=routing, targets=(0, 1))
        for function in (linears, recomputed)
    )
    assert {name: torch.equal(plain[name], again[name]) for name in plain} == dict.fromkeys(plain, True)


def test_gradcheck_of_the_reference() -> None:
    case = dataclasses.replace(CASE, num_rows=8, num_features=6, out_features=(5,), segments=((0, 3, 0), (4, 4, 1)),
                               lora_ranks=((2, 3),), dropout=(0.3, 0.0))  # fmt: skip
    values = rounded(case.inputs(), torch.float64)
    routing = case.routing()
    adapters = [m for m in values["lora_a"][0] + values["lora_b"][0] if m is not None]

    def linear(x: Tensor, *matrices: Tensor) -> Tensor:
        return reference.multi_lora_linear(
            x, values["weights"][0], None, matrices[:2], matrices[2:], routing=routing, target=1
        )

    torch.autograd.gradcheck(linear, (values["x"], *adapters))


@pytest.mark.gpu
def test_a_replayed_graph_draws_fresh_masks_once_its_routing_is_refreshed() -> None:
    case = dataclasses.replace(CASE, dropout=(0.5, 0.5, 0.5))
    values = rounded(case.inputs(), torch.float16, "cuda")
    routing = case.routing("cuda")

    def call() -> Tensor:
        return fused.fused_linears(
            values["x"], values["weights"], values["biases"], values["lora_a"], values["lora_b"],
            routing=routing, targets=(0, 1),
        )  # fmt: skip

    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    graph.replay()
    first = out.clone()
    graph.replay()
    assert torch.equal(out, first)
    routing.refresh(global_batches=[4, 4, 4])
    graph.replay()
    assert not torch.equal(out, first)
    assert torch.equal(out, call())


@pytest.mark.gpu
def test_forward_and_backward_are_captured_together() -> None:
    values = rounded(CASE.inputs(), torch.bfloat16, "cuda")
    routing = CASE.routing("cuda")
    leaves = [values["x"], *(m for ms in values["lora_a"] + values["lora_b"] for m in ms if m is not None)]

    def call() -> tuple[Tensor, ...]:
        y = fused.fused_linears(
            values["x"], values["weights"], values["biases"], values["lora_a"], values["lora_b"],
            routing=routing, targets=(0, 1),
        )  # fmt: skip
        return torch.autograd.grad(y, leaves, values["dy"])

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        wanted = call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call()
    graph.replay()
    assert [torch.equal(a, b) for a, b in zip(found, wanted, strict=True)] == [True] * len(leaves)
