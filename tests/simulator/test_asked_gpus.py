"""Which GPUs estimate and advise are asked about: their options', and the machine's where those leave it open."""

from dataclasses import replace
from pathlib import Path

import pytest

from loraplex.planner.gpus import Gpus, one_gpu_each
from loraplex.planner.inputs.load_jobs import load_jobs
from loraplex.planner.inputs.loaded_jobs import JobSettings
from loraplex.simulator.asked_gpus import AskedGpus
from loraplex.simulator.errors import SimulationError
from loraplex.tests.simulator.made_up import PROFILE
from loraplex.traces.costs import CostProfile

GIB = 2**30
MACHINE = Gpus(free_bytes=(3e9, 2e9))
JOBS = """
base_model: tiny
sequence_len: 512
pipeline: {stages: 2, replicas: 2}
defaults: {max_steps: 1, target_modules: all-linear}
adapters:
  - {name: one, datasets: [{path: "demo:arithmetic.csv", type: prompt_completion}]}
"""


def machine() -> Gpus | None:
    return MACHINE


def not_asked() -> Gpus | None:
    raise AssertionError("the machine was asked for nothing")


@pytest.fixture
def profile() -> CostProfile:
    return replace(PROFILE, memory=replace(PROFILE.memory, capacity_bytes=5e9))


@pytest.fixture
def settings(tmp_path: Path) -> JobSettings:
    (tmp_path / "jobs.yaml").write_text(JOBS, encoding="utf-8")
    return load_jobs(tmp_path / "jobs.yaml").settings


def test_a_layout_that_is_settled_is_laid_on_the_machine_unless_others_are_asked_about(profile: CostProfile) -> None:
    assert AskedGpus().for_workers(profile) is None
    assert AskedGpus(machine=machine).for_workers(profile) == MACHINE
    assert AskedGpus(device_gib=4, machine=not_asked).for_workers(profile) == one_gpu_each(4 * GIB)
    assert AskedGpus(num_gpus=3, machine=not_asked).for_workers(profile) == Gpus(free_bytes=(5e9,) * 3)
    assert AskedGpus(num_gpus=1, machine=not_asked).for_workers(None) == Gpus(free_bytes=(float("inf"),))
    assert AskedGpus(num_gpus=2, device_gib=4, machine=not_asked).for_workers(None) == Gpus(free_bytes=(4 * GIB,) * 2)


def test_a_search_takes_from_the_machine_what_is_not_said_and_without_one_from_job_file_and_profile(
    settings: JobSettings, profile: CostProfile
) -> None:
    def gpus(asked: AskedGpus) -> tuple[float, ...]:
        return asked.to_lay_on(settings, profile).free_bytes

    assert gpus(AskedGpus(machine=machine)) == (3e9, 2e9)
    assert gpus(AskedGpus(device_gib=4, machine=machine)) == (4 * GIB,) * 2
    assert gpus(AskedGpus(num_gpus=3, machine=machine)) == (2e9,) * 3
    assert gpus(AskedGpus(num_gpus=3, device_gib=4, machine=not_asked)) == (4 * GIB,) * 3
    assert gpus(AskedGpus()) == (5e9,) * 4
    assert gpus(AskedGpus(device_gib=4)) == (4 * GIB,) * 4
    assert gpus(AskedGpus(num_gpus=3)) == (5e9,) * 3


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan")])
def test_memory_is_above_nothing(size: float) -> None:
    with pytest.raises(SimulationError, match=rf"^--device-memory {size} must be above 0 GiB; raise it$"):
        AskedGpus(device_gib=size)
