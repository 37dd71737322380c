"""On a CPU: weights that cannot fit are refused with numbers, before anything starts."""

from dataclasses import replace
from pathlib import Path

import pytest

from loraplex.engine.run_settings import RunSettings
from loraplex.engine.train import train
from loraplex.planner import host_memory
from loraplex.planner.errors import PlanError
from loraplex.planner.host_memory import check_weights_fit_host, host_bytes
from loraplex.planner.inputs.load_jobs import load_jobs
from loraplex.planner.memory_check import GIB

JOBS = """
base_model: llama-3.1-70b
random_weights: true
sequence_len: 64
adapters: [{name: one, datasets: [{path: lengths.csv, type: lengths}]}]
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    (tmp_path / "lengths.csv").write_text("num_tokens\n9\n9\n", encoding="utf-8")
    (tmp_path / "jobs.yaml").write_text(JOBS, encoding="utf-8")
    return tmp_path / "jobs.yaml"


def test_weights_that_cannot_fit_are_refused_with_numbers_and_mends(job_file: Path) -> None:
    model = load_jobs(job_file).settings.base_model
    # 70.55 billion parameters of two bytes are 131.4 GiB.
    check_weights_fit_host(model, num_stages=1, num_replicas=1, free_bytes=131.5 * GIB)
    with pytest.raises(PlanError) as raised:
        check_weights_fit_host(model, num_stages=1, num_replicas=2, free_bytes=131.5 * GIB)
    assert str(raised.value) == (
        "the weights of llama-3.1-70b alone would need 262.8 GiB, in 2 replicas, but this machine has 131.5 GiB of "
        "memory and trains on its CPU; pipeline.replicas: 1 would need 131.4 GiB; load_in_4bit: true would need "
        "79.6 GiB; or take GPUs, a larger machine or a smaller model"
    )
    small = replace(model, load_in_4bit=True)
    check_weights_fit_host(small, num_stages=1, num_replicas=1, free_bytes=40 * GIB)
    with pytest.raises(PlanError, match="CPU; or take GPUs"):
        check_weights_fit_host(small, num_stages=1, num_replicas=1, free_bytes=30 * GIB)


def test_a_container_has_what_it_may_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(host_memory, "_CGROUP_LIMITS", (limit, tmp_path / "absent"))
    whole = host_bytes()
    assert 0 < whole < float("inf")
    limit.write_text("max\n", encoding="ascii")
    assert host_bytes() == whole
    limit.write_text("1048576\n", encoding="ascii")
    assert host_bytes() == 2**20


def test_train_refuses_before_any_process_starts(job_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraplex.engine.train.host_bytes", lambda: 16.0 * GIB)
    started: list[None] = []
    with pytest.raises(PlanError, match=r"llama-3\.1-70b alone would need 131\.4 GiB, but this machine has 16\.0 GiB"):
        train(RunSettings(job_file=job_file, device="cpu"), before_launch=lambda: started.append(None))
    assert started == []
