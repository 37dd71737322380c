"""Whether a run fits, what it recomputes for that, and what is proposed where it does not."""

from dataclasses import replace

import pytest

from loraplex.planner.errors import PlanError
from loraplex.planner.gpus import Gpus, one_gpu_each
from loraplex.planner.jobs import job_from_lengths
from loraplex.planner.make_plan import make_plan
from loraplex.planner.memory_check import SPARE, changes, cheapest_that_fits, check_fits, gib, needed
from loraplex.planner.plan import Plan
from loraplex.traces.costs import MemoryCosts
from loraplex.traces.memory_costs import recompute_mode

MEMORY = MemoryCosts(
    layer_weight_bytes=1000.0,
    adapter_bytes_per_layer=10.0,
    activation_bytes_per_token_layer=8.0,
    selective_bytes_per_token_layer=5.0,
    boundary_bytes_per_token=1.0,
)


def plan_of(*, num_stages: int = 2) -> Plan:
    """A full microbatch of 64 tokens for every stage and more."""
    jobs = [
        job_from_lengths(adapter=adapter, name=f"a{adapter}", lengths=[16] * 32, global_batch_size=4)
        for adapter in range(4)
    ]
    return make_plan(jobs, num_stages=num_stages, microbatch_tokens=64, strategy="stream")


def with_capacity(capacity_bytes: float) -> MemoryCosts:
    return replace(MEMORY, capacity_bytes=capacity_bytes)


def peak(plan: Plan, mode: str) -> float:
    return needed(plan, memory=MEMORY, num_layers=8, recompute=recompute_mode(mode)).peak_bytes()


def test_needs_by_hand() -> None:
    # Stage 0 of 2: four layers with four adapters; two microbatches of 64 tokens are in flight.
    plan = plan_of()
    static = 4 * (1000 + 4 * 10)
    assert peak(plan, "none") == static + 2 * 64 * 4 * 8
    assert peak(plan, "selective") == static + 2 * 64 * 4 * 5 + 64 * 3
    assert peak(plan, "full") == static + 2 * 64 * 4 * 1 + 64 * 7


def test_the_fastest_way_that_fits_is_taken() -> None:
    plan = plan_of()
    for mode in ("none", "selective", "full"):
        memory = with_capacity(peak(plan, mode) / (1 - SPARE) + 1)
        assert cheapest_that_fits(plan, memory=memory, num_layers=8).recompute == mode
    # Nothing fits: the one that needs least is what the message is about. Asked for one, there is no choice.
    assert cheapest_that_fits(plan, memory=with_capacity(1.0), num_layers=8).recompute == "full"
    need = cheapest_that_fits(plan, memory=with_capacity(1.0), num_layers=8, asked="selective")
    assert (need.recompute, need.peak_bytes()) == ("selective", peak(plan, "selective"))


def test_changes_carry_the_numbers_they_would_give() -> None:
    plan = plan_of()
    memory = with_capacity(peak(plan, "none") - 1)
    need = cheapest_that_fits(plan, memory=memory, num_layers=8, asked="none")
    four_bit = MemoryCosts(activation_bytes_per_token_layer=8.0, layer_weight_bytes=300.0)
    found = changes(
        plan, need, memory=memory, gpus=one_gpu_each(memory.capacity_bytes), num_layers=8, four_bit=four_bit
    )
    assert [change.what for change in found] == [
        "recompute: selective",
        "recompute: full",
        "microbatch_tokens: 32",
        "pipeline.stages: 4",
        "load_in_4bit: true",
    ]
    assert [change.peak_bytes for change in found] == [
        peak(plan, "selective"),
        peak(plan, "full"),
        4 * (1000 + 4 * 10) + 2 * 32 * 4 * 8,
        # Half the layers, twice as many microbatches in flight.
        2 * (1000 + 4 * 10) + 4 * 64 * 2 * 8,
        4 * 300 + 2 * 64 * 4 * 8,
    ]
    assert all(change.fits for change in found)


def test_where_no_change_is_enough_all_of_them_together_come_last() -> None:
    plan = plan_of()
    need = cheapest_that_fits(plan, memory=with_capacity(1.0), num_layers=8, asked="selective")
    found = changes(plan, need, memory=with_capacity(1.0), gpus=one_gpu_each(1.0), num_layers=8)
    assert [change.what for change in found][-1] == "recompute: full and microbatch_tokens: 32 and pipeline.stages: 4"
    # Two layers with four adapters; four microbatches of 32 tokens keep an input a layer, one is computed again.
    assert found[-1].peak_bytes == 2 * (1000 + 4 * 10) + 4 * 32 * 2 * 1 + 32 * 7


def test_a_misfit_is_told_with_its_parts_and_what_would_help() -> None:
    plan = plan_of()
    gpus = one_gpu_each(peak(plan, "selective"))
    need = cheapest_that_fits(plan, memory=MEMORY, num_layers=8, asked="none")
    found = changes(plan, need, memory=MEMORY, gpus=gpus, num_layers=8)
    with pytest.raises(PlanError) as raised:
        check_fits(plan, need, found, gpus=gpus)
    text = str(raised.value)
    assert text.startswith(f"stage 0 of 2 would need {gib(peak(plan, 'none'))} with recompute=none (weights ")
    assert "activations of 2 in flight" in text
    assert f"one of these fits: recompute: selective would need {gib(peak(plan, 'selective'))}; " in text
    check_fits(plan, need, found, gpus=one_gpu_each(peak(plan, "none")))


def test_where_nothing_is_enough_it_says_so() -> None:
    plan = plan_of()
    need = cheapest_that_fits(plan, memory=with_capacity(10.0), num_layers=8)
    found = changes(plan, need, memory=with_capacity(10.0), gpus=one_gpu_each(10.0), num_layers=8)
    with pytest.raises(PlanError, match="none of these is enough: microbatch_tokens: 32 would"):
        check_fits(plan, need, found, gpus=one_gpu_each(10.0))
    with pytest.raises(PlanError, match="take a device with more memory"):
        check_fits(plan, need, [], gpus=one_gpu_each(10.0))


def test_stages_that_share_a_gpu_are_told_and_offered_one_each() -> None:
    plan = plan_of(num_stages=2)
    # Both on one GPU with room for about one and a half of them.
    gpus = Gpus(free_bytes=(1.6 * peak(plan, "none"),))
    need = needed(plan, memory=MEMORY, num_layers=8, recompute="none")
    found = changes(plan, need, memory=MEMORY, gpus=gpus, num_layers=8)
    (alone,) = (change for change in found if "pipeline.stages" in change.what)
    # All layers, but only one microbatch in flight, and nobody to share with.
    assert (alone.what, alone.peak_bytes) == ("pipeline.stages: 1", 8 * (1000 + 4 * 10) + 64 * 8 * 8)
    assert (alone.share_bytes, alone.fits) == (1.6 * peak(plan, "none"), True)
    with pytest.raises(PlanError) as raised:
        check_fits(plan, need, found, gpus=gpus)
    text = str(raised.value)
    assert f"), but 2 stages share a GPU, which leaves each {gib(0.8 * peak(plan, 'none'))}; one of these" in text
    assert f"pipeline.stages: 1 would need {gib(alone.peak_bytes)} of then {gib(alone.share_bytes)}" in text
    check_fits(plan, need, found, gpus=Gpus(free_bytes=(2 * peak(plan, "none"),)))


def test_more_stages_are_proposed_as_far_as_there_are_gpus() -> None:
    plan = plan_of(num_stages=2)
    need = needed(plan, memory=MEMORY, num_layers=8, recompute="none")

    def proposed(num_gpus: int) -> list[str]:
        gpus = Gpus(free_bytes=(1.0,) * num_gpus)
        found = changes(plan, need, memory=MEMORY, gpus=gpus, num_layers=8)
        return [change.what for change in found if change.what.startswith("pipeline.stages")]

    assert [proposed(num_gpus) for num_gpus in (2, 3, 8)] == [[], ["pipeline.stages: 3"], ["pipeline.stages: 4"]]


def test_a_profile_that_does_not_know_selective_goes_on_to_full() -> None:
    plan = plan_of()
    memory = MemoryCosts(activation_bytes_per_token_layer=8.0, boundary_bytes_per_token=1.0, capacity_bytes=3000.0)
    assert cheapest_that_fits(plan, memory=memory, num_layers=8).recompute == "full"


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(3 * 2**30, "3.0 GiB"), (2**30 / 4, "0.2 GiB"), (5 * 2**20, "5.0 MiB")]
)
def test_amounts_read_as_people_read_device_memory(num_bytes: float, text: str) -> None:
    assert gib(num_bytes) == text
