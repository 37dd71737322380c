"""`python -m loraplex.engine`, which torchrun starts."""

import os
import subprocess
import sys
from pathlib import Path

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
        "loraplex: error: this is one process of many, which torchrun numbers; say loraplex train jobs.yaml, or start it "
        "with python -m torch.distributed.run --nproc-per-node STAGES\n"
    )
