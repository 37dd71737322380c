"""Together against apart, where the answer can be worked out by hand."""

import pytest

from loraplex.simulator.sharing import (
    capacities,
    compare_workload,
    own_gpu_tokens_per_s,
    share,
    workload,
)
from loraplex.simulator.simulate import Hardware
from loraplex.traces.costs import CostProfile, CostTerms, PassCosts

# A token costs 1 us forward and 2 us backward in each of four layers, and nothing else costs anything.
PER_TOKEN = CostProfile(
    name="per-token",
    origin="textbook",
    source="for tests",
    num_layers=4,
    forward=PassCosts(linears={"fused": CostTerms(per_token_ms=1e-3)}),
    backward=PassCosts(linears={"fused": CostTerms(per_token_ms=2e-3)}),
)
HARDWARE = Hardware(profile=PER_TOKEN)


def test_a_workload_has_one_adapter_a_name_and_repeats_by_seed() -> None:
    jobs = workload(["gsm8k", "even"], global_batch_size=2, num_batches=3, longest=500)
    assert [job.name for job in jobs] == ["gsm8k-0", "even-1"]
    assert [[sample.num_tokens for sample in batch] for batch in jobs[1].global_batches] == [[500, 500]] * 3
    assert jobs == workload(["gsm8k", "even"], global_batch_size=2, num_batches=3, longest=500)
    assert capacities(jobs) == (512, 1024, 2048, 4096, 8192)


def test_given_lengths_are_taken_in_order_round_and_round() -> None:
    jobs = workload(["gsm8k", "gsm8k"], global_batch_size=2, num_batches=1, longest=8, lengths={"gsm8k": [5, 6, 70]})
    assert [[sample.num_tokens for sample in job.global_batches[0]] for job in jobs] == [[5, 6], [8, 5]]


def test_even_samples_together_never_drain_and_apart_drain_at_every_batch() -> None:
    # Apart, one sample a microbatch: m = 4 a batch on 4 stages, so 7 slots for 4 of work, 4 adapters x 2 batches.
    # Together: 32 microbatches back to back and one fill: 35 slots; each slot is 1024 tokens x 3 us.
    jobs = workload(["even"] * 4, global_batch_size=4, num_batches=2, longest=8192)
    point = share("even", jobs, hardware=HARDWARE, num_stages=4)
    assert point.microbatches_per_batch == 4.0
    assert point.speedup == pytest.approx(4 * 2 * 7 / 35)
    assert point.own_gpu_tokens_per_s == pytest.approx(4 * 1e3 / (4 * 3e-3))
    assert point.apart_tokens_per_s == pytest.approx(4 * 2 * 4 * 1024 / (4 * 2 * 7 * 1024 * 3e-3) * 1e3)
    # Apart they are done after 14, 28, 42 and 56 slots, 35 on average: together nobody is done later than that, and
    # nobody before its own 8 microbatches and the pipeline's 3 slots are through.
    assert 11 / 35 <= point.mean_completion_ratio <= 1.0


def test_one_stage_has_nothing_to_fill() -> None:
    jobs = workload(["even"] * 2, global_batch_size=4, num_batches=2, longest=8192)
    assert share("even", jobs, hardware=HARDWARE, num_stages=1).speedup == pytest.approx(1.0)


def test_a_gpu_each_takes_as_long_as_the_slowest() -> None:
    jobs = workload(["even"] * 2, global_batch_size=4, num_batches=2, longest=8192)
    assert own_gpu_tokens_per_s(jobs, hardware=HARDWARE) == pytest.approx(2 * 1e3 / (4 * 3e-3))


def test_all_systems_in_the_published_order_on_short_samples() -> None:
    jobs = workload(["gsm8k"] * 4, global_batch_size=8, num_batches=4, longest=8192)
    points = compare_workload("gsm8k", jobs, hardware=HARDWARE, num_stages=4)
    assert [point.system for point in points] == [
        "sequential-fixed",
        "sequential-padded",
        "sequential-packed",
        "mlora",
        "lorafusion",
        "loraplex",
    ]
    assert points[0].speedup == 1.0
    assert points[-1].speedup == max(point.speedup for point in points)
    for point in points:
        assert point.speedup == pytest.approx(point.tokens_per_s / points[0].tokens_per_s)
