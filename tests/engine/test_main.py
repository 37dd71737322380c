"""`python -m loraplex.engine`, which torchrun starts."""

import os
import subprocess
import sys
from pathlib import Path

from loraplex.planner.inputs.load_jobs import load_jobs
from loraplex.planner.job_plan import plan_jobs
from loraplex.planner.plan_file import save_plan
from loraplex.tests.engine.runs import write_job

ROOT = Path(__file__).resolve().parents[2]


def test_started_by_hand_it_says_what_to_start_instead(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    done = subprocess.run(
        [sys.executable, "-m", "loraplex.engine", "jobs.yaml"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT / ".pythonpath")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "loraplex: error: this is one process of many, which torchrun numbers; say loraplex train jobs.yaml, or "
        "python -m torch.distributed.run --nproc-per-node STAGES -m loraplex.engine\n"
    )


def test_the_command_line_is_read_before_torch_is_there() -> None:
    asked = (
        "import sys, loraplex.engine.__main__; print(sorted({'torch', 'transformers', 'triton'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", asked],
        env=os.environ | {"PYTHONPATH": str(ROOT / ".pythonpath")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_too_many_processes_hear_it_once_from_the_first(tmp_path: Path) -> None:
    write_job(tmp_path)
    prepared = plan_jobs(load_jobs(tmp_path / "jobs.yaml"))
    save_plan(prepared, tmp_path / "output" / "plan.json")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3", "-m", "loraplex.engine", "jobs.yaml"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT / ".pythonpath")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    said = "loraplex: error: 3 worker processes for a plan of 2 stages x 1 replica: use torchrun"
    assert done.stderr.count("loraplex: ") == done.stderr.count(said) == 1
