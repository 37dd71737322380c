"""Sweeps: what a file stands for, and points that are not run twice."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from loraplex.analysis.metrics import summarize
from loraplex.planner.build_program import build_program
from loraplex.planner.inputs.load_jobs import load_jobs
from loraplex.planner.job_plan import plan_jobs
from loraplex.planner.jobs import job_from_lengths
from loraplex.planner.make_plan import make_plan
from loraplex.planner.plan import Plan
from loraplex.planner.plan_file import save_plan
from loraplex.simulator import point
from loraplex.simulator import sweep as sweep_module
from loraplex.simulator.cluster_file import cluster_of
from loraplex.simulator.errors import SimulationError
from loraplex.simulator.simulate import Hardware, simulate
from loraplex.simulator.sweep import POINTS, ranked, run_sweep
from loraplex.simulator.sweep_file import load_sweep
from loraplex.tests.random_plans import random_plan
from loraplex.traces.costs import CostProfile
from loraplex.traces.profiles import load_profile
from loraplex.traces.workloads import DATASETS, sample_lengths

JOB = "job: {adapters: [{lengths: gsm8k, num_samples: 32, global_batch_size: 8}]}\n"
PROFILE = "profile: llama-70b-h100-published\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_lists_and_ranges_vary_and_lists_of_tables_do_not(tmp_path: Path) -> None:
    text = """
job: {adapters: [{lengths: gsm8k, global_batch_size: [8, 16]}, {lengths: dialogsum}]}
pipeline:
  {stages: {range: [2, 4]}, microbatch_tokens: {range: [1024, 4096, 1024]}, layers_per_stage: [[2, 1], [1, 2]]}
cluster: {slow: [{stage: 0, factor: [1.0, 1.5]}]}
profile: a
"""
    sweep = load_sweep(written(tmp_path, text))
    assert [(axis.name(), axis.values) for axis in sweep.axes] == [
        ("job.adapters.0.global_batch_size", (8, 16)),
        ("pipeline.stages", (2, 3, 4)),
        ("pipeline.microbatch_tokens", (1024, 2048, 3072, 4096)),
        ("pipeline.layers_per_stage", ([2, 1], [1, 2])),
        ("cluster.slow.0.factor", (1.0, 1.5)),
    ]
    points = list(sweep.points())
    assert len(points) == sweep.num_combinations() == 2 * 3 * 4 * 2 * 2
    assert points[0].chosen == {
        "job.adapters.0.global_batch_size": 8,
        "pipeline.stages": 2,
        "pipeline.microbatch_tokens": 1024,
        "pipeline.layers_per_stage": [2, 1],
        "cluster.slow.0.factor": 1.0,
    }
    assert points[1].content["cluster"] == {"slow": [{"stage": 0, "factor": 1.5}]}
    assert len({json.dumps(point.content, sort_keys=True) for point in points}) == len(points)


def test_a_sample_of_too_many_points_is_seeded(tmp_path: Path) -> None:
    many = JOB + PROFILE + "cluster: {jitter: {range: [0, 1, 0.001]}, seed: {range: [0, 999]}}\nsample: 50\nseed: 3\n"
    sweep = load_sweep(written(tmp_path, many))
    assert sweep.num_combinations() == 1001 * 1000
    chosen = [tuple(point.chosen.values()) for point in sweep.points()]
    assert len(set(chosen)) == 50
    assert chosen == [tuple(point.chosen.values()) for point in load_sweep(sweep.path).points()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (JOB, "profile is missing"),
        (PROFILE, "needs either a job or a plan"),
        (JOB + PROFILE + "plan: plan.json", "needs either a job or a plan"),
        (JOB + PROFILE + "pipelin: {}", "pipelin is unknown; it may hold job, plan"),
        (JOB + PROFILE + "pipeline: {stages: []}", "pipeline.stages is an empty list"),
        (JOB + PROFILE + "pipeline: {stages: [2, 2]}", "pipeline.stages=.* holds a value twice"),
        (JOB + PROFILE + "pipeline: {stages: {range: [4, 2]}}", "must rise from first to last"),
        (JOB + PROFILE + "pipeline: {stages: {range: [1]}}", "must be .first, last. or"),
        (JOB + PROFILE + "sample: 0", "sample=0 must be a whole number from 1 on"),
        (JOB + PROFILE + "sample: 200000\ncluster: {seed: {range: [0, 90000]}, jitter: [0, 1, 2]}", "200,000 points"),
        (JOB + PROFILE + "cluster: {seed: {range: [0, 99999]}, jitter: {range: [0, 9999]}}",
         "1,000,000,000 points .* exceed"),
        ("[1]", "must be a table"),
        ("a: [", ":1: expected the node content, but found '<stream end>'; only plain YAML is read"),
        ("seed: 1\nseed: 2", ":2: the key 'seed' is given twice; keep one"),
    ],
)  # fmt: skip
def test_a_bad_file_is_told_so(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match=message) as raised:
        load_sweep(written(tmp_path, text))
    assert str(tmp_path) in str(raised.value)


def test_a_point_is_what_simulate_says(tmp_path: Path) -> None:
    text = """
job: {adapters: [{lengths: gsm8k, num_samples: 64, global_batch_size: 8, seed: 5}]}
pipeline: {stages: 4, microbatch_tokens: 2048, schedule: [1f1b, gpipe]}
profile: llama-70b-h100-published
"""
    table = run_sweep(load_sweep(written(tmp_path, text)), folder=tmp_path / "out")
    lengths = sample_lengths("gsm8k", num_samples=64, seed=5)
    job = job_from_lengths(adapter=0, name="gsm8k-0", lengths=lengths, global_batch_size=8)
    plan = make_plan([job], num_stages=4, microbatch_tokens=2048, time_limit_s=10)
    profile = load_profile("llama-70b-h100-published")
    for row, schedule in zip(table.to_dict(orient="records"), ("1f1b", "gpipe"), strict=True):
        program = build_program(plan, schedule=schedule, profile=profile)
        found = simulate(program, plan, Hardware(profile=profile))
        assert row["makespan_ms"] == pytest.approx(found.makespan_ms())
        assert row["peak_memory_bytes"] == max(found.peak_memory_bytes)
        assert row["program"] == program.schedule
    assert pd.read_csv(tmp_path / "out/sweep.csv")["makespan_ms"].tolist() == pytest.approx(
        table["makespan_ms"].tolist()
    )


def test_a_point_with_jitter_a_slow_gpu_a_pause_and_a_restart_is_what_simulate_says(tmp_path: Path) -> None:
    plan = random_plan(3, num_stages=2)
    save_plan(plan, tmp_path / "plan.json")
    program, profile = build_program(plan), load_profile("llama-70b-h100-published")
    calm_ms = simulate(program, plan, Hardware(profile=profile)).makespan_ms()
    text = f"""
plan: plan.json
profile: llama-70b-h100-published
cluster:
  jitter: 0.1
  seed: [1, 2]
  slow: [{{factor: 1.5}}]
  pauses: [{{within_ms: {0.3 * calm_ms}, for_ms: [0, {calm_ms / 10}]}}]
  restart: {{at_ms: [{0.4 * calm_ms}, {9 * calm_ms}], for_ms: {calm_ms / 5}, checkpoint_every: 3}}
"""
    sweep = load_sweep(written(tmp_path, text))
    table = run_sweep(sweep, folder=tmp_path / "out")
    assert table["error"].isna().all()
    for row, asked in zip(table.to_dict(orient="records"), sweep.points(), strict=True):
        cluster = cluster_of(asked.content["cluster"], where="cluster")
        found = simulate(program, plan, Hardware(profile=profile, cluster=cluster))
        summary = summarize(found.timeline, plan=plan)
        assert cluster.restart is not None
        assert ("restart" in set(found.timeline.frame["cause"])) is (cluster.restart.at_ms < calm_ms)
        assert row["makespan_ms"] == pytest.approx(found.makespan_ms(), rel=1e-12)
        assert row["bubble_ratio"] == pytest.approx(summary.bubble_ratio, rel=1e-9)
        assert row["tokens_per_s"] == pytest.approx(summary.tokens_per_s, rel=1e-9)
        assert row["peak_memory_bytes"] == max(found.peak_memory_bytes)
    assert table["makespan_ms"].nunique() == len(table) == 8


def test_finished_points_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    run = point.run_points

    def counted(contents: Any, *, folder: Path) -> Any:
        ran.append(len(contents))
        return run(contents, folder=folder)

    monkeypatch.setattr(sweep_module, "run_points", counted)
    text = JOB + PROFILE + "pipeline: {stages: 2, schedule: [1f1b, gpipe]}\n"
    first = run_sweep(load_sweep(written(tmp_path, text)), folder=tmp_path / "out")
    assert sum(ran) == 2
    again = run_sweep(load_sweep(written(tmp_path, text)), folder=tmp_path / "out")
    assert sum(ran) == 2
    pd.testing.assert_frame_equal(first, again)
    more = text.replace("[1f1b, gpipe]", "[1f1b, gpipe, 1f1b-flush]")
    assert len(run_sweep(load_sweep(written(tmp_path, more)), folder=tmp_path / "out")) == 3
    assert sum(ran) == 3
    # A run killed while it wrote a line: that point is run again.
    lines = (tmp_path / "out" / POINTS).read_text(encoding="utf-8")
    (tmp_path / "out" / POINTS).write_text(lines[:-20], encoding="utf-8")
    assert len(run_sweep(load_sweep(written(tmp_path, more)), folder=tmp_path / "out")) == 3
    assert sum(ran) == 4


def test_points_that_cannot_be_run_say_why_and_the_others_go_on(tmp_path: Path) -> None:
    text = JOB + PROFILE + "pipeline: {stages: [4, 100], schedule: [1f1b, 2f2b]}\n"
    table = run_sweep(load_sweep(written(tmp_path, text)), folder=tmp_path / "out")
    errors = table["error"].tolist()
    assert table["error"].isna().tolist() == [True, False, False, False]
    assert "schedule '2f2b' is unknown" in errors[1]
    assert "num_stages=100 must lie between 1 and the model's 80 layers" in errors[2]
    assert len(ranked(table)) == 1


def test_a_plan_as_it_is_and_a_profile_changed_field_by_field(tmp_path: Path) -> None:
    save_plan(random_plan(3, num_stages=2), tmp_path / "plan.json")
    text = """
plan: plan.json
profile: {name: llama-70b-h100-published, link: {latency_ms: [0, 5]}, forward: {linears: {eager: {fixed_ms: [0.5, 1]}}}}
"""
    table = run_sweep(load_sweep(written(tmp_path, text)), folder=tmp_path / "out", workers=2)
    assert table["error"].tolist() == [None] * 4
    assert list(table.columns[:2]) == ["profile.link.latency_ms", "profile.forward.linears.eager.fixed_ms"]
    makespans = table["makespan_ms"].tolist()
    assert makespans[0] < makespans[1] < makespans[3]
    assert makespans[0] < makespans[2] < makespans[3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plan: plan.json\npipeline: {stages: 4}\n" + PROFILE, "pipeline.stages cannot be changed in a plan"),
        (JOB + "profile: {name: llama-70b-h100-published, lnk: {latency_ms: 1}}", "profile.lnk is no field"),
        (JOB + "profile: {name: llama-70b-h100-published, step_fixed_ms: -1}", "step_fixed_ms=-1 must be a finite"),
        (JOB + "profile: nowhere", "is neither a file nor in the box"),
        (JOB + PROFILE + "pipeline: {stage: 4}", "pipeline.stage is unknown"),
        (JOB + PROFILE + "cluster: {jitter: -1}", "cluster: jitter=-1"),
        ("job: {adapters: []}\n" + PROFILE, "job.adapters is an empty list"),
        ("job: {adapters: [{lengths: nowhere.csv}]}\n" + PROFILE, "job.adapters.0.lengths='nowhere.csv' is neither a"),
        ("job: {adapters: [{lengths: gsm9k}]}\n" + PROFILE, f"data set; those are {', '.join(sorted(DATASETS))}"),
        ("job: {adapters: [{num_samples: 3}]}\n" + PROFILE, "job.adapters.0.lengths='' is neither a"),
        ("job: {adapters: [{lengths: gsm8k, global_batch_size: 0}]}\n" + PROFILE, "global_batch_size=0 must be"),
        ("job: nowhere.yaml\n" + PROFILE, "nowhere.yaml"),
    ],
)  # fmt: skip
def test_fields_that_cannot_be_are_named(text: str, message: str, tmp_path: Path) -> None:
    save_plan(random_plan(3, num_stages=2), tmp_path / "plan.json")
    try:
        table = run_sweep(load_sweep(written(tmp_path, text)), folder=tmp_path / "out")
    except SimulationError as error:
        found = str(error)
    else:
        found = table["error"].iloc[0]
    assert message in found


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / POINTS).write_text("one\ntwo\nthree\n", encoding="utf-8")
    with pytest.raises(SimulationError, match=r"points.jsonl:1: is no result of a sweep"):
        run_sweep(load_sweep(written(tmp_path, JOB + PROFILE)), folder=tmp_path / "out")


def test_a_job_file_with_fields_set_anew(tmp_path: Path) -> None:
    (tmp_path / "chat.csv").write_text("num_tokens\n" + "\n".join(["100"] * 24) + "\n", encoding="utf-8")
    (tmp_path / "jobs.yaml").write_text(
        """
base_model: tiny
sequence_len: 512
microbatch_tokens: 512
pipeline: {stages: 2}
adapters:
  - {name: chat, global_batch_size: 8, datasets: [{path: chat.csv, type: lengths}]}
  - {name: mail, global_batch_size: 4, datasets: [{path: chat.csv, type: lengths}]}
""",
        encoding="utf-8",
    )
    text = """
job: {file: jobs.yaml, adapters: {chat: {global_batch_size: [8, 24]}}}
pipeline: {stages: [1, 2]}
profile: llama-70b-h100-published
"""
    table = run_sweep(load_sweep(written(tmp_path, text)), folder=tmp_path / "out")
    assert table["error"].tolist() == [None] * 4
    assert list(table.columns[:2]) == ["job.adapters.chat.global_batch_size", "pipeline.stages"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chat.csv", "jobs.yaml", "out", "sweep.yaml"]
    wrong = text.replace("chat: {", "chet: {")
    found = run_sweep(load_sweep(written(tmp_path, wrong)), folder=tmp_path / "wrong")["error"].iloc[0]
    assert "'chet' is none of ['chat', 'mail']" in found


def test_plans_may_be_made_for_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned_for: list[str | None] = []

    def told(*args: Any, profile: CostProfile | None, **settings: Any) -> Plan:
        planned_for.append(profile.name if profile else None)
        return make_plan(*args, profile=profile, **settings)

    monkeypatch.setattr(point, "make_plan", told)
    pipeline = "pipeline: {stages: 2, microbatch_tokens: 2048, planned_for: [null, llama-70b-h100-published]}\n"
    sweep = load_sweep(written(tmp_path, JOB + PROFILE + pipeline))
    assert run_sweep(sweep, folder=tmp_path / "out")["error"].isna().all()
    assert sorted(planned_for, key=str) == [None, "llama-70b-h100-published"]


def test_a_job_file_is_planned_as_train_plans_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Plan] = []

    def kept(*args: Any, **settings: Any) -> Plan:
        made.append(make_plan(*args, **settings))
        return made[-1]

    monkeypatch.setattr(point, "make_plan", kept)
    # Global batches so small that full microbatches leave the second stage empty.
    (tmp_path / "texts.csv").write_text("num_tokens\n" + "300\n1000\n700\n500\n" * 6, encoding="utf-8")
    job = tmp_path / "jobs.yaml"
    job.write_text(
        """
base_model: tiny
random_weights: true
sequence_len: 2048
microbatch_tokens: 4096
pipeline: {stages: 2, schedule: 1f1b-flush}
adapters: [{name: one, global_batch_size: 4, datasets: [{path: texts.csv, type: lengths}]}]
""",
        encoding="utf-8",
    )
    planned = plan_jobs(load_jobs(job, allow_lengths=True))
    file = "job: jobs.yaml\n" + PROFILE
    table = run_sweep(load_sweep(written(tmp_path, file)), folder=tmp_path / "out")
    assert table["error"].tolist() == [None]
    assert (made[0].microbatches, made[0].schedule) == (planned.microbatches, planned.schedule)
    by_slots = file + "pipeline: {planned_for: [null]}\n"
    assert run_sweep(load_sweep(written(tmp_path, by_slots)), folder=tmp_path / "slots")["error"].isna().all()
    assert len(made[1].microbatches) < len(planned.microbatches)
    # A schedule of the sweep's own is not planned for, as points of other schedules share the plan.
    other = file + "pipeline: {schedule: [gpipe, null]}\n"
    table = run_sweep(load_sweep(written(tmp_path, other)), folder=tmp_path / "other")
    assert table["program"].tolist() == ["gpipe", "1f1b-flush"]


def test_stages_of_a_job_file_rank_as_advise_ranks_them(tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("num_tokens\n" + "300\n1000\n700\n500\n" * 6, encoding="utf-8")
    (tmp_path / "jobs.yaml").write_text(
        """
base_model: tiny
random_weights: true
sequence_len: 2048
microbatch_tokens: 4096
adapters: [{name: one, global_batch_size: 4, datasets: [{path: texts.csv, type: lengths}]}]
""",
        encoding="utf-8",
    )
    text = "job: jobs.yaml\npipeline: {stages: [1, 2]}\nprofile: tiny-cpu\n"
    table = run_sweep(load_sweep(written(tmp_path, text)), folder=tmp_path / "out")
    assert ranked(table)["pipeline.stages"].tolist() == [2, 1]
