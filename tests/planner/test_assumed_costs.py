"""A job file's pipeline is planned by assumed costs where nothing was measured."""

from pathlib import Path

import pytest

from loraplex.planner.assumed_costs import assumed_costs
from loraplex.planner.inputs.load_jobs import load_jobs
from loraplex.planner.inputs.loaded_jobs import LoadedJobs
from loraplex.planner.job_plan import plan_jobs
from loraplex.planner.make_plan import make_plan
from loraplex.planner.packing.objective import predicted_makespan_ms
from loraplex.planner.plan import Plan
from loraplex.planner.plan_command import PlanRequest, make_requested_plan
from loraplex.traces.profiles import load_profile

MEASURED = "llama-3.1-8b-nvidia-h100-80gb-hbm3-measured"


def jobs(folder: Path, *, stages: int, replicas: int = 1) -> LoadedJobs:
    """Four adapters whose global batches hold about 2,000 tokens, a quarter of a microbatch."""
    (folder / "lengths.csv").write_text("num_tokens\n" + "\n".join(["100", "260", "180", "460"] * 12), encoding="utf-8")
    names = ("one", "two", "three", "four")
    adapters = "".join(f"  - {{name: {name}, datasets: [{{path: lengths.csv, type: lengths}}]}}\n" for name in names)
    (folder / "jobs.yaml").write_text(
        "base_model: llama-3.1-8b\nrandom_weights: true\nsequence_len: 2048\nmicrobatch_tokens: 8192\n"
        f"pipeline: {{stages: {stages}, replicas: {replicas}}}\ndefaults: {{global_batch_size: 8}}\n"
        f"adapters:\n{adapters}",
        encoding="utf-8",
    )
    return load_jobs(folder / "jobs.yaml", allow_lengths=True)


def full(loaded: LoadedJobs) -> Plan:
    """Every microbatch as full as may be."""
    wanted = loaded.settings
    return make_plan(
        loaded.jobs,
        num_stages=wanted.num_stages,
        num_replicas=wanted.num_replicas,
        microbatch_tokens=wanted.microbatch_tokens,
    )


@pytest.mark.parametrize(("stages", "replicas"), [(4, 1), (2, 2)])
def test_small_global_batches_leave_no_pipeline_empty(tmp_path: Path, stages: int, replicas: int) -> None:
    loaded, measured = jobs(tmp_path, stages=stages, replicas=replicas), load_profile(MEASURED)
    found, best, slowest = (
        predicted_makespan_ms(plan, measured)
        for plan in (plan_jobs(loaded), plan_jobs(loaded, profile=measured), full(loaded))
    )
    assert found <= 1.02 * best
    assert slowest > 1.4 * found


def test_a_lone_worker_has_nobody_to_wait_for(tmp_path: Path) -> None:
    loaded = jobs(tmp_path, stages=1)
    assert assumed_costs(num_workers=1) is None
    assert plan_jobs(loaded).microbatches == full(loaded).microbatches


def test_plan_makes_the_plan_that_train_makes(tmp_path: Path) -> None:
    loaded = jobs(tmp_path, stages=4)
    planned, _ = make_requested_plan(PlanRequest(job_file=tmp_path / "jobs.yaml"))
    assert planned.microbatches == plan_jobs(loaded).microbatches
