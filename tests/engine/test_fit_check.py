"""Before a run starts: what it makes again, and whether it fits."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from loraplex.engine.fit_check import agreed_recompute, settled_recompute
from loraplex.engine.rendezvous import RendezvousTransport, Switchboard
from loraplex.engine.run_settings import RunSettings
from loraplex.planner.errors import PlanError
from loraplex.planner.gpus import Gpus, one_gpu_each
from loraplex.planner.inputs.load_jobs import load_jobs
from loraplex.planner.inputs.loaded_jobs import LoadedJobs
from loraplex.planner.make_plan import make_plan
from loraplex.planner.memory_check import GIB, needed
from loraplex.planner.memory_formula import memory_of_shapes
from loraplex.planner.model_shapes import ModelShapes
from loraplex.planner.plan import Plan
from loraplex.traces.costs import MemoryCosts, uniform_profile
from loraplex.traces.memory_costs import RECOMPUTE_MODES, RecomputeMode

JOBS = """
base_model: llama-3.1-8b
random_weights: true
sequence_len: 1024
microbatch_tokens: 4096
pipeline: {stages: 2}
adapters:
  - {name: one, datasets: [{path: lengths.csv, type: lengths}]}
"""


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedJobs:
    (tmp_path / "lengths.csv").write_text("num_tokens\n" + "\n".join(["1024"] * 64), encoding="utf-8")
    (tmp_path / "jobs.yaml").write_text(JOBS, encoding="utf-8")
    return load_jobs(tmp_path / "jobs.yaml")


@pytest.fixture
def plan(loaded: LoadedJobs) -> Plan:
    return make_plan(loaded.jobs, num_stages=2, microbatch_tokens=4096, strategy="stream")


def peak(plan: Plan, loaded: LoadedJobs, mode: RecomputeMode) -> float:
    shapes = ModelShapes.of(loaded.settings.base_model)
    memory = memory_of_shapes(shapes, plan.jobs, num_stages=2)
    return needed(plan, memory=memory, num_layers=32, recompute=mode).peak_bytes()


def test_auto_is_the_least_that_fits(plan: Plan, loaded: LoadedJobs) -> None:
    for mode in RECOMPUTE_MODES:
        # With the few percent to spare that estimates are off by.
        room = 1.05 * peak(plan, loaded, mode)
        assert settled_recompute(plan, loaded, asked="auto", gpus=one_gpu_each(room)) == mode
    assert settled_recompute(plan, loaded, asked="auto", gpus=None) == "none"


def test_what_is_asked_for_is_done_where_it_fits(plan: Plan, loaded: LoadedJobs) -> None:
    room = 80.0 * GIB
    assert settled_recompute(plan, loaded, asked="full", gpus=one_gpu_each(room)) == "full"
    assert settled_recompute(plan, loaded, asked="selective", gpus=None) == "selective"
    with pytest.raises(PlanError, match=r"stage 0 of 2 would need .* with recompute=none .*recompute: selective would"):
        settled_recompute(plan, loaded, asked="none", gpus=one_gpu_each(peak(plan, loaded, "none") - 1))


def test_what_cannot_fit_is_refused_with_numbers_and_mends(plan: Plan, loaded: LoadedJobs) -> None:
    with pytest.raises(PlanError) as raised:
        settled_recompute(plan, loaded, asked="auto", gpus=one_gpu_each(7.0 * GIB))
    text = str(raised.value)
    assert "with recompute=full (weights 7.5 GiB, adapters " in text
    assert "but its device has 7.0 GiB; one of these fits: pipeline.stages: 4 would need " in text
    assert "load_in_4bit: true would need " in text
    # In 4 bits already, that is no proposal any more.
    model = replace(loaded.settings.base_model, load_in_4bit=True)
    small = replace(loaded, settings=replace(loaded.settings, base_model=model))
    with pytest.raises(PlanError) as raised:
        settled_recompute(plan, small, asked="auto", gpus=one_gpu_each(3.0 * GIB))
    assert "load_in_4bit" not in str(raised.value)


def test_stages_on_one_gpu_have_a_share_of_it(plan: Plan, loaded: LoadedJobs) -> None:
    whole = 1.9 * peak(plan, loaded, "none")
    assert settled_recompute(plan, loaded, asked="none", gpus=Gpus(free_bytes=(whole, whole))) == "none"
    with pytest.raises(PlanError, match=r"\), but 2 stages share a GPU, which leaves each .* GiB; one of these fits: "):
        settled_recompute(plan, loaded, asked="none", gpus=Gpus(free_bytes=(whole,)))


def test_a_measured_profile_goes_before_the_shapes(plan: Plan, loaded: LoadedJobs) -> None:
    # So little is kept that nothing need be made again, whatever the shapes say.
    memory = MemoryCosts(layer_weight_bytes=2**20, activation_bytes_per_token_layer=1.0)
    profile = replace(uniform_profile(forward_ms=1, backward_ms=2, num_stages=32), memory=memory)
    assert settled_recompute(plan, loaded, asked="auto", gpus=one_gpu_each(1.0 * GIB), profile=profile) == "none"
    other = replace(uniform_profile(forward_ms=1, backward_ms=2, num_stages=4), memory=memory)
    with pytest.raises(PlanError, match="'uniform' is of a model of 4 layers"):
        settled_recompute(plan, loaded, asked="auto", gpus=one_gpu_each(1.0 * GIB), profile=other)


def test_workers_agree_on_what_saves_most() -> None:
    board = Switchboard(3, timeout_s=20)
    wishes: tuple[RecomputeMode, ...] = ("none", "selective", "none")
    found: dict[int, RecomputeMode] = {}

    def work(worker: int) -> None:
        found[worker] = agreed_recompute(wishes[worker], RendezvousTransport(board, worker), num_workers=3)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(3), "selective")


def test_workers_are_told_what_was_settled(tmp_path: Path) -> None:
    assert RunSettings(job_file=tmp_path / "j.yaml", recompute="selective").arguments()[-2:] == [
        "--recompute",
        "selective",
    ]
    assert "--recompute" not in RunSettings(job_file=tmp_path / "j.yaml").arguments()
