"""Textbook questions."""

import pytest

from loraplex.simulator.errors import SimulationError
from loraplex.simulator.textbook import parse_uniform, textbook_plan


def test_microbatches_are_counted_per_replica() -> None:
    plan = textbook_plan(num_stages=3, num_microbatches=4, num_replicas=2, num_batches=2)
    assert (plan.num_stages, plan.num_slots(), len(plan.microbatches)) == (3, 8, 16)
    assert [len(batch) for batch in plan.jobs[0].global_batches] == [8, 8]


def test_costs_are_forward_backward_and_the_weight_part() -> None:
    profile = parse_uniform("2,6,1.5", num_stages=4, num_chunks=2)
    stage = profile.stages(num_stages=8)[0]
    load = {"tokens": 1, "squares": 1, "targets": 1, "adapters": 1}
    assert (float(stage.forward_ms(**load)), float(stage.backward_ms(**load))) == (1.0, 3.0)
    assert stage.weight_share == 0.25
    assert parse_uniform("2,6", num_stages=4).weight_share == 0.0


@pytest.mark.parametrize("text", ["", "1", "1,2,3,4", "a,b", "1,nan", "1,inf"])
def test_what_is_no_cost_is_named(text: str) -> None:
    with pytest.raises(SimulationError, match=f"uniform='{text}' must be F,B or F,B,W in ms"):
        parse_uniform(text, num_stages=2)


def test_counts_start_at_one() -> None:
    with pytest.raises(SimulationError, match="num_microbatches=0 must be at least 1"):
        textbook_plan(num_stages=2, num_microbatches=0)


def test_a_mistyped_number_does_not_eat_all_memory() -> None:
    with pytest.raises(SimulationError, match="100,000,000 stages with 8 microbatches are 800,000,000 forwards"):
        textbook_plan(num_stages=10**8, num_microbatches=8)
