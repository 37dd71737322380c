"""What every action costs: loads composed with a profile, whose link carries what, and reductions."""

from dataclasses import replace

import pytest

from loraplex.planner.build_program import build_program
from loraplex.planner.costing import ProgramCosts, program_costs, sends
from loraplex.planner.errors import PlanError
from loraplex.planner.graph import action_text
from loraplex.planner.jobs import LoraSettings, job_from_lengths
from loraplex.planner.plan import Plan, microbatch
from loraplex.planner.program import Action, ActionColumns, ActionKind, Program
from loraplex.tests.random_plans import even_plan
from loraplex.traces.costs import (
    CostProfile,
    CostTerms,
    EndCosts,
    GraphCosts,
    LinkCosts,
    MemoryCosts,
    PassCosts,
    uniform_profile,
)
from loraplex.traces.memory_costs import RECOMPUTE_MODES

PROFILE = CostProfile(
    name="made-up",
    origin="textbook",
    source="numbers chosen for arithmetic",
    num_layers=4,
    forward=PassCosts(linears={"fused": CostTerms(per_token_ms=1.0, per_square_ms=0.01, per_adapter_ms=0.5)}),
    backward=PassCosts(linears={"fused": CostTerms(per_token_ms=2.0)}),
    weight_share=0.25,
    ends=EndCosts(head_forward=CostTerms(per_token_ms=10.0)),
    step_ms_per_layer=3.0,
    step_fixed_ms=1.0,
    link=LinkCosts(latency_ms=0.5, bytes_per_ms=4.0, bytes_per_token=2.0),
    memory=MemoryCosts(adapter_gradient_bytes_per_layer=8.0),
)


def words(costs: ProgramCosts, values: str) -> dict[str, float]:
    """A column of the costs by action."""
    graph = costs.graph
    column = getattr(costs, values).tolist()
    return {
        action_text(graph.program, worker, place): column[int(graph.offsets[worker]) + place]
        for worker, columns in enumerate(graph.program.workers)
        for place in range(len(columns))
    }


def test_an_evaluation_is_launched_kernel_by_kernel() -> None:
    plan = even_plan(1, 1, num_tokens=8)
    actions = [Action(kind=kind, microbatch=0) for kind in (ActionKind.EVALUATE, ActionKind.FORWARD)]
    program = Program(schedule="made up", num_stages=1, workers=(ActionColumns.of(actions),))
    slow = CostTerms(floor_ms=9.0)
    profile = CostProfile(
        name="made-up",
        origin="textbook",
        source="a layer is launched in 9 ms, or replayed",
        num_layers=1,
        forward=PassCosts(linears={"fused": slow}),
        backward=PassCosts(linears={"fused": slow}),
        graphs=GraphCosts(max_tokens=8, forward_floor_ms=0.5),
    )
    assert program_costs(program, plan, profile).duration_ms.tolist() == [9.0, 0.5]


def two_adapters() -> Plan:
    """One microbatch of two adapters: 3 tokens (2 of them targets) padded to 4, and 5 padded to 8."""
    jobs = (
        job_from_lengths(adapter=0, name="a", lengths=[3], target_lengths=[2], global_batch_size=1),
        job_from_lengths(adapter=1, name="b", lengths=[5], global_batch_size=1),
    )
    samples = [sample for job in jobs for batch in job.global_batches for sample in batch]
    return Plan(jobs=jobs, num_stages=2, microbatch_tokens=16, pad_multiple=4, microbatches=(microbatch(samples),))


def test_every_action_by_arithmetic() -> None:
    plan = two_adapters()
    costs = program_costs(build_program(plan), plan, PROFILE, layers_per_stage=(3, 1))
    layer = 12 * 1.0 + (3**2 + 5**2) * 0.01 + 2 * 0.5
    assert words(costs, "duration_ms") == pytest.approx(
        {
            "0F0": 3 * layer,
            "1F0": layer + 10.0 * 7,
            "0B0": 3 * 24.0,
            "1B0": 24.0,
            "0S0.0": 1 + 3 * 3.0,
            "0S1.0": 1 + 3 * 3.0,
            "1S0.0": 1 + 3.0,
            "1S1.0": 1 + 3.0,
        }
    )
    sent = 0.5 + 12 * 2.0 / 4.0
    assert {word: ms for word, ms in words(costs, "transfer_ms").items() if ms} == {"0F0": sent, "1B0": sent}


def test_a_split_backward_costs_as_much_as_a_whole_one() -> None:
    plan = two_adapters()
    found = words(program_costs(build_program(plan, schedule="zb-h1"), plan, PROFILE), "duration_ms")
    assert (found["0I0"], found["0W0"]) == (0.75 * 48.0, 0.25 * 48.0)


def test_recomputation_is_paid_in_the_backward() -> None:
    plan = two_adapters()
    program = build_program(plan)
    plain, recomputed = (
        words(program_costs(program, plan, PROFILE, recompute=mode), "duration_ms") for mode in RECOMPUTE_MODES[::2]
    )
    # The layers are run again, the head is not.
    assert recomputed["1B0"] - plain["1B0"] == pytest.approx(2 * (12.0 + 0.34 + 1.0))
    assert recomputed["1F0"] == plain["1F0"]


def test_dropout_is_paid_for_the_tokens_that_have_it() -> None:
    plan = two_adapters()
    jobs = (plan.jobs[0], replace(plan.jobs[1], lora=LoraSettings(lora_dropout=0.1)))
    dropping = replace(PROFILE.forward.linears["fused"], per_dropped_ms=0.5)
    profile = replace(PROFILE, forward=PassCosts(linears={"fused": dropping}))
    plain = words(program_costs(build_program(plan), plan, profile), "duration_ms")
    found = words(program_costs(build_program(plan), replace(plan, jobs=jobs), profile), "duration_ms")
    # Two layers and the 5 tokens of the second adapter.
    assert found["0F0"] - plain["0F0"] == pytest.approx(2 * 5 * 0.5)


def test_replicas_reduce_in_a_ring() -> None:
    plan = even_plan(1, 3, num_replicas=3)
    link = LinkCosts(latency_ms=1.0, bytes_per_ms=2.0)
    costs = program_costs(build_program(plan), plan, PROFILE, replica_link=link)
    # Four rounds of a third of 4 layers x 8 bytes.
    reduces = costs.duration_ms[costs.graph.kind == int(ActionKind.REDUCE)]
    assert reduces.tolist() == pytest.approx([4 * (1.0 + 32 / 3 / 2.0)] * 3)


def test_each_message_goes_over_the_link_of_the_lower_part() -> None:
    plan = even_plan(3, 1)
    program = build_program(plan)
    links = [replace(PROFILE.link, latency_ms=float(10 * (worker + 1)), bytes_per_token=0.0) for worker in range(3)]
    costs = program_costs(program, plan, PROFILE, links=links)
    assert {word: ms for word, ms in words(costs, "transfer_ms").items() if ms} == {
        "0F0": 10.0,
        "1F0": 20.0,
        "2B0": 20.0,
        "1B0": 10.0,
    }


def test_chunks_send_from_the_last_stage_back_to_the_first() -> None:
    plan = even_plan(2, 2)
    program = build_program(plan, schedule="interleaved-2")
    costs = program_costs(program, plan, uniform_profile(forward_ms=1, backward_ms=2, num_stages=2, num_chunks=2))
    sending, link = sends(costs.graph)
    found = {
        action_text(program, worker, place): int(link[int(costs.graph.offsets[worker]) + place])
        for worker in range(2)
        for place in range(len(program.workers[worker]))
        if sending[int(costs.graph.offsets[worker]) + place]
    }
    expected = {"0F0": 0, "1F0": 1, "2F0": 0, "3B0": 0, "2B0": 1, "1B0": 0}
    assert {word: at for word, at in found.items() if word.endswith("0")} == expected


def test_one_stage_sends_nothing_even_in_chunks() -> None:
    plan = even_plan(1, 4)
    profile = uniform_profile(forward_ms=1, backward_ms=2, num_stages=1, num_chunks=2, latency_ms=5.0)
    costs = program_costs(build_program(plan, schedule="interleaved-2"), plan, profile)
    assert costs.transfer_ms.tolist() == [0.0] * costs.graph.num_actions()


def test_a_link_that_is_not_overlapped_blocks() -> None:
    plan = even_plan(2, 1)
    blocking = replace(PROFILE, link=replace(PROFILE.link, overlapped=False))
    assert program_costs(build_program(plan), plan, blocking).blocking
    assert not program_costs(build_program(plan), plan, PROFILE).blocking


def test_another_plan_or_a_wrong_number_of_links_is_refused() -> None:
    program = build_program(even_plan(2, 4))
    with pytest.raises(PlanError, match="the program runs microbatch 3, but the plan has only 2"):
        program_costs(program, even_plan(2, 2), PROFILE)
    with pytest.raises(PlanError, match="1 links were given; 2 workers need one each"):
        program_costs(program, even_plan(2, 4), PROFILE, links=[PROFILE.link])
