"""Which microbatches a GPU is measured with."""

from collections import Counter

import numpy as np

from loraplex.engine.itinerary import itinerary
from loraplex.engine.profile_conditions import (
    DEFAULT_LORAS,
    conditions_plan,
    draw_conditions,
    round_order,
    small_and_large,
)
from loraplex.engine.profile_plan import measuring_program
from loraplex.planner.jobs import LoraSettings
from loraplex.planner.loads import Loads
from loraplex.planner.program import ActionKind
from loraplex.traces.graph_tokens import GRAPH_TOKENS


def test_sizes_mixes_adapters_and_dropout_all_meet() -> None:
    conditions = draw_conditions(DEFAULT_LORAS, capacity_tokens=16384)
    sizes = [sum(condition.lengths) for condition in conditions]
    assert len(conditions) == 36
    assert min(sizes) == 64
    # Small ones of both ways of launching, in the deeper stage and in what only every third is run through as well.
    for every, replayed, launched in ((1, 10, 3), (2, 5, 2), (3, 4, 1)):
        some = [size for size in sizes[::every] if size < 4096]
        assert sum(size <= GRAPH_TOKENS for size in some) == replayed
        assert sum(size > GRAPH_TOKENS for size in some) == launched
    assert 16300 < max(sizes) <= 16384
    # Most of them are as large as a plan's.
    assert sum(size > 4096 for size in sizes) >= 18
    assert sum(size > 8192 for size in sizes) >= 12
    assert {max(condition.lengths) for condition in conditions} >= {128, 512, 2048}
    assert {len(set(condition.adapters)) for condition in conditions} >= {1, 2, 4, 8, 16}
    kinds = Counter(
        frozenset(DEFAULT_LORAS[adapter].lora_dropout > 0 for adapter in condition.adapters) for condition in conditions
    )
    assert {frozenset({False}), frozenset({True}), frozenset({False, True})} <= set(kinds)
    assert all(
        list(condition.adapters) == sorted(condition.adapters, key=condition.adapters.index) for condition in conditions
    )


def test_a_small_capacity_and_a_single_adapter_are_measured_too() -> None:
    conditions = draw_conditions([LoraSettings(r=4)], capacity_tokens=60, count=5)
    assert [max(sum(condition.lengths) for condition in conditions) <= 60] == [True]
    assert {condition.adapters[0] for condition in conditions} == {0}


def test_small_ones_are_told_from_large_ones_in_their_order() -> None:
    conditions = draw_conditions(DEFAULT_LORAS, capacity_tokens=16384)
    small, large = small_and_large(conditions)
    assert sorted((*small, *large), key=lambda one: one.number) == list(conditions)
    assert max(sum(one.lengths) for one in small) < 4096 <= min(sum(one.lengths) for one in large)
    assert small_and_large(conditions[-1:]) == ((), conditions[-1:])
    assert small_and_large(()) == ((), ())


def test_a_round_goes_from_small_to_large() -> None:
    conditions = draw_conditions(DEFAULT_LORAS, capacity_tokens=16384)
    sizes = np.array([sum(condition.lengths) for condition in conditions])
    generator = np.random.default_rng(0)
    orders = [round_order(conditions, generator, again=3) for _ in range(2)]
    for order in orders:
        assert Counter(order) == dict.fromkeys(range(36), 3)
        # None comes behind one that is more than 1.3 times as large.
        assert (sizes[order] * 1.3 >= np.maximum.accumulate(sizes[order])).all()
    assert orders[0] != orders[1]
    assert sorted(round_order(conditions, generator)) == list(range(36))


def test_each_condition_is_a_microbatch_of_its_own() -> None:
    conditions = draw_conditions(DEFAULT_LORAS, capacity_tokens=1024, count=12)
    plan = conditions_plan(conditions, DEFAULT_LORAS, num_stages=3)
    loads = Loads.of(plan.microbatches[:-2], jobs=plan.jobs)
    assert loads.tokens.tolist() == [sum(condition.lengths) for condition in conditions]
    assert loads.squares.tolist() == [sum(length**2 for length in condition.lengths) for condition in conditions]
    assert loads.adapters.tolist() == [len(set(condition.adapters)) for condition in conditions]
    assert loads.dropped.tolist() == [
        sum(
            length
            for length, adapter in zip(condition.lengths, condition.adapters, strict=True)
            if DEFAULT_LORAS[adapter].lora_dropout
        )
        for condition in conditions
    ]
    shares = loads.targets / loads.tokens
    assert np.allclose(shares, [condition.target_share for condition in conditions], atol=0.02)


def test_all_global_batches_end_with_the_last_of_two_equal_microbatches() -> None:
    conditions = draw_conditions(DEFAULT_LORAS, capacity_tokens=1024, count=12)
    plan = conditions_plan(conditions, DEFAULT_LORAS, num_stages=3)
    legs = itinerary(measuring_program(plan), plan, stage=1)
    ends = [len(leg.closes) for leg in legs if leg.action.kind is ActionKind.BACKWARD]
    assert ends == [0] * 13 + [len(DEFAULT_LORAS)]
    assert [leg.action.kind for leg in legs][-16:] == [ActionKind.STEP] * 16
    loads = Loads.of(plan.microbatches[-2:], jobs=plan.jobs)
    assert [column.tolist() for column in (loads.tokens, loads.adapters, loads.targets)] == [
        [1024] * 2,
        [16] * 2,
        [512] * 2,
    ]
