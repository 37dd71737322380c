"""`loraplex estimate`: what a job file takes, before anything runs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from loraplex.engine import device_memory
from loraplex.engine.fit_check import settled_recompute
from loraplex.planner.errors import JobError, PlanError
from loraplex.planner.gpus import Gpus
from loraplex.planner.inputs.load_jobs import load_jobs
from loraplex.planner.plan_file import save_plan
from loraplex.simulator.errors import SimulationError
from loraplex.simulator.estimate import EstimateRequest, estimate
from loraplex.simulator.estimate_commands import estimate as command
from loraplex.simulator.sweep_commands import sweep
from loraplex.tests.simulator.made_up import PROFILE
from loraplex.traces.errors import TraceError

app = typer.Typer()
app.command("estimate")(command)
app.command()(sweep)

JOBS = """
base_model: llama-3.1-8b
random_weights: true
sequence_len: 2048
microbatch_tokens: 4096
pipeline: {stages: 2}
defaults: {global_batch_size: 4}
adapters:
  - {name: one, datasets: [{path: lengths.csv, type: lengths}]}
  - {name: two, r: 32, datasets: [{path: lengths.csv, type: lengths}]}
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    (tmp_path / "lengths.csv").write_text("num_tokens\n" + "\n".join(["1024"] * 32), encoding="utf-8")
    path = tmp_path / "jobs.yaml"
    path.write_text(JOBS, encoding="utf-8")
    return path


def run(*words: str) -> Any:
    done = CliRunner().invoke(app, ["estimate", *words, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def test_a_base_in_4_bits_is_counted_as_such_and_not_proposed_again(job_file: Path) -> None:
    dense = run(str(job_file))["stages"]
    job_file.write_text(JOBS + "load_in_4bit: true\n", encoding="utf-8")
    found = run(str(job_file), "--device-memory", "3")
    # The linears of 16 layers: 2 bytes a weight, or half a byte and a sixteenth.
    linears = 16 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 14336)
    assert dense[0]["weights_bytes"] - found["stages"][0]["weights_bytes"] == linears * (2 - 0.5625)
    assert found["fits"] is False
    assert [change["what"] for change in found["changes"] if "4bit" in change["what"]] == []


def test_memory_follows_from_shapes_where_nothing_was_measured(job_file: Path) -> None:
    found = run(str(job_file))
    assert (found["memory_from"], found["recompute"], found["fits"], found["capacity_bytes"]) == (
        "shapes",
        "none",
        True,
        None,
    )
    assert (found["num_stages"], found["num_tokens"], found["num_steps"]) == (2, 2 * 32 * 1024, 16)
    assert found["makespan_ms"] is found["tokens_per_s"] is None
    assert found["limit"].startswith("not known: give --device-memory")
    first, last = found["stages"]
    # Half of the weights in bf16, and one end, each.
    assert first["weights_bytes"] + last["weights_bytes"] == 2 * 8_030_261_248
    assert (first["num_in_flight"], last["num_in_flight"]) == (2, 1)
    # Two adapters of which the second has twice the parameters; 22 bytes a parameter, half of the layers.
    assert first["adapters_bytes"] == 22 * 41_943_040 * 3 / 2
    parts = ("weights", "adapters", "activations", "logits", "passing", "graphs", "overhead")
    for stage in found["stages"]:
        assert stage["peak_bytes"] == pytest.approx(sum(stage[f"{part}_bytes"] for part in parts), abs=3)


def test_the_best_weights_are_counted_where_the_job_file_asks_for_them(job_file: Path) -> None:
    def adapters_bytes() -> float:
        return sum(stage.adapters_bytes for stage in estimate(EstimateRequest(job_file=job_file)).decision.need.stages)

    before, text = adapters_bytes(), job_file.read_text(encoding="utf-8")
    looks = "{name: two, val_split: 0.2, eval_steps: 2, load_best_model_at_end: true,"
    job_file.write_text(text.replace("{name: two,", looks), encoding="utf-8")
    # r = 32 on all linears: twice the parameters of r = 16, in float32.
    assert adapters_bytes() - before == pytest.approx(4 * 2 * 41_943_040)


def test_a_smaller_device_recomputes_more_and_one_too_small_says_what_to_change(job_file: Path) -> None:
    assert [run(str(job_file), "--device-memory", size)["recompute"] for size in ("80", "24", "14")] == [
        "none",
        "selective",
        "full",
    ]
    found = run(str(job_file), "--device-memory", "8")
    assert (found["fits"], found["recompute"]) == (False, "full")
    assert found["limit"].startswith("memory: stage 0 needs ")
    assert [change["what"] for change in found["changes"]] == [
        "microbatch_tokens: 2048",
        "pipeline.stages: 4",
        "load_in_4bit: true",
    ]
    assert [change["fits"] for change in found["changes"]] == [False, True, True]


def test_stages_that_share_a_gpu_are_counted_as_train_counts_them(
    job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_jobs(job_file)
    PROFILE.save(tmp_path / "profile.json")
    for free_gib, words in [(48.0, ()), (28.0, ()), (48.0, ("--profile", str(tmp_path / "profile.json")))]:
        machine = Gpus(free_bytes=(free_gib * 2**30,))
        monkeypatch.setattr(device_memory, "free_gpus", lambda machine=machine: machine)
        found = run(str(job_file), *words)
        assert (found["stages_per_gpu"], found["capacity_bytes"]) == (2, free_gib / 2 * 2**30)
        plan = estimate(EstimateRequest(job_file=job_file)).plan
        profile = PROFILE if words else None
        assert found["recompute"] == settled_recompute(plan, loaded, asked="auto", gpus=machine, profile=profile)


def test_sharing_may_be_asked_for_and_is_named(job_file: Path, tmp_path: Path) -> None:
    each = run(str(job_file), "--device-memory", "24")
    assert (each["stages_per_gpu"], each["capacity_bytes"], each["recompute"]) == (1, 24 * 2**30, "selective")
    shared = run(str(job_file), "--device-memory", "24", "--gpus", "1")
    assert (shared["stages_per_gpu"], shared["capacity_bytes"], shared["recompute"]) == (2, 12 * 2**30, "full")
    small = run(str(job_file), "--device-memory", "16", "--gpus", "1")
    assert (small["fits"], small["capacity_bytes"]) == (False, 8 * 2**30)
    assert small["limit"].endswith(", 2 stages share a GPU, which leaves each 8.0 GiB")
    (alone,) = (change for change in small["changes"] if change["what"] == "pipeline.stages: 1")
    assert alone["share_bytes"] == 16 * 2**30
    PROFILE.save(tmp_path / "profile.json")
    words = ["estimate", str(job_file), "--profile", str(tmp_path / "profile.json"), "--gpus", "1"]
    assert "2 stages share a GPU, which leaves each 30.0 MiB" in CliRunner().invoke(app, words).stdout


def test_other_stages_and_replicas_may_be_asked_about(job_file: Path, tmp_path: Path) -> None:
    found = run(str(job_file), "--gpus", "8", "--device-memory", "80", "--stages", "4", "--replicas", "2")
    assert (found["num_stages"], found["num_replicas"], len(found["stages"])) == (4, 2, 4)
    words = ["estimate", str(job_file), "--gpus", "8", "--device-memory", "80"]
    assert "6 of 8 GPUs idle: --stages and --replicas ask about more of them\n" in CliRunner().invoke(app, words).stdout
    assert "idle" not in CliRunner().invoke(app, [*words, "--replicas", "4"]).stdout
    with pytest.raises(JobError, match=r"--stages 33 exceeds the 32 layers of llama-3\.1-8b"):
        estimate(EstimateRequest(job_file=job_file, num_stages=33))
    with pytest.raises(SimulationError, match=r"has its own stages and replicas; leave out --plan, or --stages"):
        estimate(EstimateRequest(job_file=job_file, plan_file=tmp_path / "plan.json", num_stages=4))


def test_a_profile_gives_times_and_the_memory_it_measured(job_file: Path, tmp_path: Path) -> None:
    PROFILE.save(tmp_path / "profile.json")
    found = run(str(job_file), "--profile", str(tmp_path / "profile.json"))
    assert (found["memory_from"], found["capacity_bytes"]) == ("made-up", 60 * 2**20)
    # Planned by it, microbatches hold one sample, so that two stages stay busy. Of 16 layers, 2 in flight at none
    # take 3.1 MiB beside 16 MiB of weights, and as much once more in graphs; all fits.
    assert found["recompute"] == "none"
    assert found["peak_memory_bytes"] == 16 * 2**20 + 2 * (2 * 1024 * 16 * 100)
    # 64 samples of 1024 tokens; uniform 1F1B on two stages: 65 slots of 3 x 16.384 ms.
    assert found["num_microbatches"] == 64
    assert found["makespan_ms"] == pytest.approx(65 * 3 * 1024 * 16 * 0.001)
    assert found["step_ms"] == pytest.approx(found["makespan_ms"] / 16)
    assert found["tokens_per_s"] == pytest.approx(65536 / found["makespan_ms"] * 1e3)
    assert found["limit"] == "stage 0, which computes 98% of the time"
    assert set(found["completion_ms"]) == {"one", "two"}


def test_recomputation_costs_time(job_file: Path, tmp_path: Path) -> None:
    PROFILE.save(tmp_path / "profile.json")
    times = {
        mode: run(str(job_file), "--profile", str(tmp_path / "profile.json"), "--recompute", mode)["makespan_ms"]
        for mode in ("none", "selective", "full")
    }
    # Elementwise kernels are not told apart here, and one forward more is a third of forward and backward.
    assert times["selective"] == times["none"]
    assert times["full"] == pytest.approx(times["none"] * 4 / 3)
    path = tmp_path / "jobs.yaml"
    path.write_text(JOBS + "recompute: full\n", encoding="utf-8")
    assert run(str(path), "--profile", str(tmp_path / "profile.json"))["makespan_ms"] == times["full"]


def test_people_read_tables(job_file: Path, tmp_path: Path) -> None:
    PROFILE.save(tmp_path / "profile.json")
    done = CliRunner().invoke(app, ["estimate", str(job_file), "--profile", str(tmp_path / "profile.json")])
    assert done.exit_code == 0
    for words in ("in MiB;", "time, by made-up (textbook)", "limit: stage 0", "memory by made-up"):
        assert words in done.stdout
    small = CliRunner().invoke(app, ["estimate", str(job_file), "--device-memory", "8"])
    assert "pipeline.stages: 4 -> " in small.stdout
    assert "fits" in small.stdout


def test_what_does_not_belong_together_is_refused(job_file: Path, tmp_path: Path) -> None:
    replace(PROFILE, num_layers=80).save(tmp_path / "other.json")
    with pytest.raises(PlanError, match=r"'made-up' is of a model of 80 layers, the base model llama-3\.1-8b has 32"):
        estimate(EstimateRequest(job_file=job_file, profile=str(tmp_path / "other.json")))
    found = estimate(EstimateRequest(job_file=job_file))
    save_plan(replace(found.plan, data_fingerprint="0" * 64), tmp_path / "plan.json")
    with pytest.raises(
        PlanError, match=r"plan\.json was made for other data \(fingerprint 000000000000\); make it anew"
    ):
        estimate(EstimateRequest(job_file=job_file, plan_file=tmp_path / "plan.json"))
    # Memory would be told for the adapters of the plan, which training then refuses.
    save_plan(found.plan, tmp_path / "plan.json")
    smaller = job_file.with_name("smaller.yaml")
    smaller.write_text(JOBS.replace("r: 32", "r: 4"), encoding="utf-8")
    with pytest.raises(
        PlanError, match=r"plan\.json holds other lora of adapter 'two' than the job file; make it anew"
    ):
        estimate(EstimateRequest(job_file=smaller, plan_file=tmp_path / "plan.json"))
    with pytest.raises(TraceError, match="recompute='some' is unknown; choose one of none, selective, full, auto"):
        run(str(job_file), "--recompute", "some")
    with pytest.raises(SimulationError, match=r"--device-memory 0\.0 must be above 0 GiB"):
        run(str(job_file), "--device-memory", "0")


def test_a_plan_that_is_there_is_taken(job_file: Path, tmp_path: Path) -> None:
    found = estimate(EstimateRequest(job_file=job_file))
    save_plan(found.plan, tmp_path / "plan.json")
    again = estimate(EstimateRequest(job_file=job_file, plan_file=tmp_path / "plan.json"))
    assert again.plan == found.plan
    assert again.decision == found.decision
