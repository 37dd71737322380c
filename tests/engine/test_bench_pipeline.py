"""`loraplex bench pipeline`: all systems foretold and executed, small enough for two CPU processes."""

import json
from pathlib import Path

import pandas as pd
import pytest

from loraplex.engine import bench_pipeline_run
from loraplex.engine.bench_commands import bench_pipeline
from loraplex.engine.bench_pipeline import BenchRequest, Sharing, write_job_file
from loraplex.planner.errors import JobError
from loraplex.planner.inputs.load_jobs import load_jobs
from loraplex.traces.profiles import load_profile

ROOT = Path(__file__).resolve().parents[2]
SYSTEMS = ["loraplex", "sequential-fixed", "sequential-padded", "sequential-packed", "mlora", "lorafusion"]


def request(**changes: object) -> BenchRequest:
    given: dict[str, object] = {
        "model": "tiny",
        "num_layers": 2,
        "num_stages": 2,
        "microbatch_tokens": 96,
        "num_batches": 2,
        "global_batch_size": 2,
        "device": "cpu",
        "thread_percentage": "12",
        "profile_file": None,
    }
    return BenchRequest(**(given | changes))  # type: ignore[arg-type]


def test_every_system_is_foretold_and_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_pipeline(
        model="tiny",
        layers=2,
        stages=2,
        # The smallest at which the published planner puts in empty microbatches.
        microbatch_tokens=2048,
        batches=3,
        global_batch_size=4,
        device="cpu",
        # Of another model: what it foretells is wrong, but it saves measuring one.
        profile=ROOT / "traces" / "data" / "profile-llama-70b-h100-published.json",
        output=tmp_path,
        json=True,
    )
    told = json.loads(capsys.readouterr().out)
    assert [record["system"] for record in told["records"]] == SYSTEMS
    assert sorted(told["summary"]["measured_order"]) == sorted(SYSTEMS)
    assert told["why_no_mps"] == "stages run on the CPU"
    assert [len(told["sharing"][name]) for name in ("alone_ms", "together_ms")] == [2, 2]
    for record in told["records"]:
        assert record["num_tokens"] == told["records"][0]["num_tokens"]
        assert 0 < record["measured_bubble_ratio"] < 1
        busy = record["measured_busy_ms_0"] + record["measured_busy_ms_1"]
        assert record["measured_bubble_ratio"] == pytest.approx(1 - busy / 2 / record["measured_makespan_ms"])
    path, profile = sorted(tmp_path.glob("pipeline-*.json"), key=lambda path: len(path.name))
    assert load_profile(profile) == load_profile("llama-70b-h100-published")
    assert json.loads(path.read_text()) == told
    assert list(pd.read_csv(path.with_suffix(".csv"))["system"]) == SYSTEMS
    assert path.with_suffix(".png").is_file()


def test_the_job_file_holds_the_same_lengths_for_other_commands(tmp_path: Path) -> None:
    asked = request()
    model, jobs = asked.write_model(tmp_path), asked.jobs()
    assert json.loads(model.read_text())["num_hidden_layers"] == 2
    loaded = load_jobs(write_job_file(jobs, model=model, num_stages=2, microbatch_tokens=96))
    assert loaded.settings.base_model.random_weights
    assert [job.name for job in loaded.jobs] == ["gsm8k", "dialogsum", "scitldr_a", "qmsum_span"]
    for job, same in zip(jobs, loaded.jobs, strict=True):
        lengths = [sorted(s.num_tokens for batch in one.global_batches for s in batch) for one in (job, same)]
        assert lengths[0] == lengths[1]
        assert max(lengths[0]) <= 96


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama"}, r"--model llama is unknown; choose tiny or a shape: llama-3.1-70b, "),
        ({"num_stages": 3}, "--layers 2 are fewer than --stages 3; raise them"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(JobError, match=message):
        request(**changes).write_model(tmp_path)


def test_a_large_model_is_refused_where_it_would_fill_the_hosts_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_pipeline_run, "launch", lambda *_, **__: pytest.fail("started"))
    monkeypatch.setattr(bench_pipeline_run, "profile_model", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(
        JobError, match=r"--model llama-3.1-8b is too large where stages run on the CPU; choose --model ti"
    ):
        bench_pipeline_run.run_bench(
            request(model="llama-3.1-8b", device="cpu"), foretell=lambda *_: pytest.fail("foretold"), say=lambda _: None
        )


def test_a_stage_is_slowed_down_by_as_much_as_the_worst_of_them() -> None:
    assert Sharing(alone_ms=(100.0, 200.0), together_ms=(101.0, 210.0)).slowdown() == 1.05
