"""Runs and plans small enough to check by hand."""

from collections.abc import Callable

import pytest

from loraplex.planner.jobs import job_from_lengths
from loraplex.planner.plan import Plan, microbatch
from loraplex.traces.timeline import Span, Timeline

MakeTimeline = Callable[..., Timeline]


def one_f_one_b(
    *,
    num_stages: int,
    num_microbatches: int,
    forward_ms: float = 1.0,
    backward_ms: float = 2.0,
    source: str = "simulated",
) -> Timeline:
    """Uniform 1F1B without transfers: every action starts once its stage and its input are there."""
    ended: dict[tuple[str, int, int], float] = {}
    orders = []
    for stage in range(num_stages):
        warmup = min(num_stages - stage, num_microbatches)
        order = [("F", index) for index in range(warmup)]
        for index in range(num_microbatches):
            order.append(("B", index))
            if warmup + index < num_microbatches:
                order.append(("F", warmup + index))
        orders.append(order)
    free_ms, spans = [0.0] * num_stages, []
    while any(orders):
        for stage, order in enumerate(orders):
            if not order:
                continue
            letter, index = order[0]
            last = stage == num_stages - 1
            before = (letter, index, stage - 1) if letter == "F" else ("F" if last else "B", index, stage + (not last))
            if before not in ended and (letter, stage) != ("F", 0):
                continue
            start_ms = max(free_ms[stage], ended.get(before, 0.0))
            free_ms[stage] = ended[letter, index, stage] = start_ms + (forward_ms if letter == "F" else backward_ms)
            spans.append(
                Span(
                    stage=stage,
                    action=f"{stage}{letter}{index}",
                    microbatch=index,
                    start_ms=start_ms,
                    end_ms=free_ms[stage],
                )
            )
            order.pop(0)
    assert source in ("simulated", "measured")
    return Timeline.from_spans(
        spans, source="measured" if source == "measured" else "simulated", origin="by hand", num_stages=num_stages
    )


@pytest.fixture
def make_1f1b() -> MakeTimeline:
    """Makes uniform 1F1B timelines."""
    return one_f_one_b


@pytest.fixture
def two_adapters() -> Plan:
    """Two stages, two adapters, two microbatches of at most 100 tokens, padded to multiples of 8."""
    first = job_from_lengths(adapter=0, name="maths", lengths=[40, 10], global_batch_size=1)
    second = job_from_lengths(adapter=1, name="papers", lengths=[30, 90], global_batch_size=2)
    (a0,), (a1,) = first.global_batches
    ((b0, b1),) = second.global_batches
    return Plan(
        jobs=(first, second),
        num_stages=2,
        microbatch_tokens=100,
        pad_multiple=8,
        microbatches=(microbatch([a0, b0]), microbatch([b1]), microbatch([a1])),
    )
