"""All systems on one workload, and the benchmark of the replay itself."""

import pytest

from loraplex.planner.jobs import job_from_lengths
from loraplex.planner.make_plan import make_plan
from loraplex.planner.plan import Plan
from loraplex.simulator.bench import bench, report, stream_plan
from loraplex.simulator.simulate import Hardware
from loraplex.simulator.systems import compare_systems, one_after_another
from loraplex.traces.profiles import load_profile
from loraplex.traces.workloads import sample_lengths


def real_plan() -> Plan:
    """Four adapters on lengths of one real data set, drawn anew for each as in the published runs, on four stages."""
    jobs = tuple(
        job_from_lengths(
            adapter=adapter,
            name=f"dialogsum-{adapter}",
            lengths=[min(length, 1024) for length in sample_lengths("dialogsum", num_samples=96, seed=adapter)],
            global_batch_size=16,
        )
        for adapter in range(4)
    )
    return make_plan(jobs, num_stages=4, microbatch_tokens=2048, strategy="stream")


def test_the_systems_come_out_in_the_published_order() -> None:
    hardware = Hardware(profile=load_profile("llama-70b-h100-published"))
    plan = real_plan()
    told: list[str] = []
    results = compare_systems(plan, hardware, progress=lambda label, share: told.append(label))
    names = [result.name for result in results]
    apart, published = (
        ["sequential-fixed", "sequential-padded", "sequential-packed"],
        ["mlora", "lorafusion", "loraplex"],
    )
    assert names == told == apart + published
    speeds = {result.name: result.tokens_per_s() for result in results}
    assert sorted(published, key=speeds.__getitem__) == published
    assert max(speeds[name] for name in apart) < speeds["mlora"]
    assert speeds["sequential-padded"] < speeds["sequential-fixed"]
    assert {result.num_tokens for result in results} == {plan.num_tokens()}
    assert [result.schedule for result in results[:5]] == ["1f1b-flush"] * 3 + ["1f1b-greedy", "1f1b-slots"]


def test_plans_of_one_system_run_one_after_another() -> None:
    hardware = Hardware(profile=load_profile("llama-70b-h100-published"))
    apart = compare_systems(real_plan(), hardware)[2].timeline
    again = one_after_another([apart, apart])
    assert again.makespan_ms() == pytest.approx(2 * apart.makespan_ms())
    assert len(again.frame) == 2 * len(apart.frame)
    assert again.counters["ms"].max() == pytest.approx(apart.makespan_ms() + apart.counters["ms"].max())


def test_the_benchmark_measures_every_method() -> None:
    rows = bench(sizes=[(2, 40)], repeats=1, sweep_points=3)
    sized = [row for row in rows if row.num_microbatches == 40]
    # Forward and backward of each microbatch on each stage, and one Step a global batch: 4 adapters of 10 microbatches.
    assert {row.num_actions for row in sized} == {2 * (2 * 40 + 4)}
    assert {"simpy", "simpy-with-spans", "recurrence-python", "recurrence-batched"} <= {row.method for row in sized}
    assert all(row.actions_per_s > 0 for row in rows)
    assert rows[-1].method == "sweep-3-points"
    content = report(rows, command="loraplex bench simulator")
    assert {"num_stages", "num_microbatches", "method", "actions_per_s"} <= set(content["results"][0])


def test_the_benchmarks_stream_needs_no_drain() -> None:
    plan = stream_plan(4, 200)
    assert len(plan.microbatches) == 200
    assert sum(job.num_samples() for job in plan.jobs) == 200
