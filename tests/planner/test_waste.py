"""What a plan wastes, adapter by adapter, counted by hand."""

from hypothesis import given

from loraplex.planner.packing.workload import workload_of
from loraplex.planner.plan import Plan
from loraplex.planner.plan_report import plan_figures
from loraplex.planner.waste import Waste, waste_by_adapter
from loraplex.tests.random_jobs import jobs_of
from loraplex.tests.random_plans import plans


def test_padding_unused_capacity_and_stalls() -> None:
    jobs = jobs_of([[[5], [6]], [[3]]])
    workload = workload_of(jobs, microbatch_tokens=12, num_stages=3, pad_multiple=4)
    plan = Plan(
        jobs=jobs,
        num_stages=3,
        microbatch_tokens=12,
        pad_multiple=4,
        microbatches=workload.microbatches([[0, 2], [1]]),
    )
    # Slot 0: 8 + 4 padded of 12. Slot 3, two later than it could be: 8 padded of 12.
    assert waste_by_adapter(plan) == (
        Waste(num_tokens=11, num_microbatches=2, padding_tokens=5, capacity_waste_tokens=4.0, stall_slots=2.0),
        Waste(num_tokens=3, num_microbatches=1, padding_tokens=1, capacity_waste_tokens=0.0, stall_slots=0.0),
    )


def test_adapters_that_wait_together_share_the_stall() -> None:
    jobs = jobs_of([[[5], [5]], [[4], [4]]])
    workload = workload_of(jobs, microbatch_tokens=10, num_stages=4)
    plan = Plan(jobs=jobs, num_stages=4, microbatch_tokens=10, microbatches=workload.microbatches([[0, 2], [1, 3]]))
    assert [waste.stall_slots for waste in waste_by_adapter(plan)] == [1.5, 1.5]


@given(plans(max_replicas=3))
def test_nothing_is_lost(plan: Plan) -> None:
    wastes = waste_by_adapter(plan)
    held = [batch for batch in plan.microbatches if batch.samples]
    whole = sum(waste.num_tokens + waste.padding_tokens + waste.capacity_waste_tokens for waste in wastes)
    assert abs(whole - len(held) * plan.microbatch_tokens) < 1e-6 * max(1.0, whole)
    assert abs(sum(waste.stall_slots for waste in wastes) - plan_figures(plan).stall_slots) < 1e-9
