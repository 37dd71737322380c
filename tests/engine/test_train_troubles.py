"""`loraplex train` when something goes wrong: one adapter, or the disk. In a process per stage, as users run it."""

import json
import math
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from loraplex.engine.evaluation_records import EvaluationRecord
from loraplex.engine.metrics import StepRecord, read_metrics
from loraplex.engine.trained_run import TrainedAdapter

ROOT = Path(__file__).resolve().parents[2]
JOB = """\
base_model: tiny
sequence_len: 64
pipeline: {stages: 2}
output_dir: output
defaults: {r: 2, target_modules: [q_proj], global_batch_size: 2, max_steps: 4, datasets: [{path: texts.jsonl}]}
adapters:
  - {name: calm, learning_rate: 1e-3}
  - {name: wild, learning_rate: 1e30}
"""
"""The second adapter's first step leaves weights with which nothing is a number."""


FULL = """\
import errno, os
real = os.replace

def replace(source, target, **rest):
    if "microbatch-3" in str(target):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))
    return real(source, target, **rest)

os.replace = replace
"""
"""A sitecustomize.py: Python runs it first in every process of a run."""


def train(folder: Path, *options: str, job: str = JOB) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder of its own."""
    lines = [json.dumps({"prompt": f"{a} + 1 =", "completion": f" {a + 1}"}) for a in range(8)]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "jobs.yaml").write_text(job, encoding="utf-8")
    paths = os.pathsep.join([str(folder / "site"), str(ROOT / ".pythonpath"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", "from loraplex.cli import main; main()", "train", "jobs.yaml", *options],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_quarantined_adapter_is_saved_and_named_and_the_run_succeeds(tmp_path: Path) -> None:
    done = train(tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    calm, wild = json.loads(done.stdout)["adapters"]
    assert (calm["steps"], calm["quarantined_at_step"]) == (4, None)
    assert (wild["steps"], wild["quarantined_at_step"]) == (0, 1)
    assert "loraplex: warning: adapter 'wild' was quarantined at step 1: the " in done.stderr
    assert ("output/adapters/wild holds it untrained; lower its learning_rate or look at its data\n") in done.stderr
    assert [record.state for record in read_metrics(tmp_path / "output" / "metrics-wild.jsonl")] == [
        "taken",
        "quarantined",
    ]
    tensors = load_file(tmp_path / "output" / "adapters" / "wild" / "adapter_model.safetensors")
    # As LoRA begins: every B zero.
    assert {name.split(".")[-2]: bool(tensor.any()) for name, tensor in tensors.items()} == {
        "lora_A": True,
        "lora_B": False,
    }


def test_a_run_of_which_every_adapter_was_quarantined_has_not_succeeded(tmp_path: Path) -> None:
    done = train(tmp_path, job=JOB.replace("  - {name: calm, learning_rate: 1e-3}\n", ""))
    assert done.returncode == 1
    assert done.stderr.endswith("loraplex: every adapter was quarantined: nothing is trained to its end\n")
    assert (tmp_path / "output" / "adapters" / "wild" / "adapter_model.safetensors").is_file()


def quarantined_at_its_first_step() -> TrainedAdapter:
    record = StepRecord(
        adapter="one",
        step=0,
        loss=math.nan,
        learning_rate=1e-3,
        grad_norm=math.nan,
        update_norm=0.0,
        tokens=8,
        ms=1.0,
        state="quarantined",
    )
    return TrainedAdapter(
        name="one",
        folder=Path("out/one"),
        metrics_file=Path("m"),
        first=record,
        last=record,
        validation={},
        steps_taken=0,
        quarantined_at=0,
    )


@pytest.mark.parametrize("wants_best", [False, True])
def test_the_warning_says_which_weights_are_there(wants_best: bool) -> None:
    looks = [(2, 3.0, True), (4, 2.5, True), (6, 2.7, False)]
    adapter = replace(
        quarantined_at_its_first_step(),
        steps_taken=7,
        quarantined_at=7,
        evaluations=tuple(
            EvaluationRecord(adapter="one", step=step, loss=loss, best=best) for step, loss, best in looks
        ),
        wants_best=wants_best,
    )
    holds = (
        "as of its lowest validation loss, after 4 steps" if wants_best else "as of its last good step, after 7 steps"
    )
    assert adapter.warning() == (
        f"adapter 'one' was quarantined at step 7: the loss is nan. out/one holds it {holds}; lower its learning_rate "
        "or look at its data"
    )


def test_an_adapter_without_a_single_good_step_points_at_the_base_model_too() -> None:
    adapter = quarantined_at_its_first_step()
    assert adapter.warning() == (
        "adapter 'one' was quarantined at its first step: the loss is nan. out/one holds it untrained; look at its "
        "data, and at the weights of the base model"
    )


def test_where_steps_are_skipped_the_adapter_goes_back_and_on(tmp_path: Path) -> None:
    done = train(tmp_path, "--json", job=JOB + "on_nonfinite: skip\n")
    assert done.returncode == 0, done.stderr
    _, wild = json.loads(done.stdout)["adapters"]
    # Every step that is taken breaks it, and the next finds that out.
    assert (wild["steps"], wild["skipped_steps"], wild["undone_steps"]) == (0, [1, 3], [0, 2])
    assert (
        "loraplex: warning: adapter 'wild' left out 2 steps, the first 1, and took back 2 before such ones; lower its "
        "learning_rate or look at its data\n"
    ) in done.stderr
    tensors = load_file(tmp_path / "output" / "adapters" / "wild" / "adapter_model.safetensors")
    assert {name.split(".")[-2]: bool(tensor.any()) for name, tensor in tensors.items()} == {
        "lora_A": True,
        "lora_B": False,
    }


def test_stop_ends_the_run_and_names_adapter_and_step(tmp_path: Path) -> None:
    done = train(tmp_path, job=JOB + "on_nonfinite: stop\n")
    assert done.returncode == 1
    assert "adapter 'wild', step 1: the gradient norm is " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_ends_the_run_with_the_path_and_the_last_checkpoint_whole(tmp_path: Path) -> None:
    job = JOB.replace("learning_rate: 1e30", "learning_rate: 1e-3").replace("max_steps: 4", "max_steps: 8")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(FULL, encoding="utf-8")
    begin = time.monotonic()
    done = train(tmp_path, "--checkpoint-every", "1", job=job)
    assert time.monotonic() - begin < 60
    assert done.returncode == 1
    assert re.search(
        r"loraplex: output/checkpoints/microbatch-3/stage-\d-of-2.safetensors could not be written \(No space left on "
        r"device\); free some space there and go on from the last whole checkpoint with --resume",
        done.stderr,
    )
    assert "Traceback" not in done.stderr
    # As it was asked for, so that what goes on is as safe.
    assert done.stderr.endswith("loraplex: go on with loraplex train jobs.yaml --checkpoint-every 1 --resume\n")
    kept = tmp_path / "output" / "checkpoints"
    assert not list(kept.glob("*/.*.tmp"))
    assert len(list((kept / "microbatch-2").iterdir())) == 2
    (tmp_path / "site" / "sitecustomize.py").unlink()
    # Who forgets --resume loses nothing.
    before = {path: path.read_bytes() for path in (tmp_path / "output").rglob("*") if path.is_file()}
    done = train(tmp_path, job=job)
    assert done.returncode == 2
    assert done.stderr == (
        "loraplex: error: output/checkpoints/microbatch-2 is a checkpoint of an earlier run; go on from it with "
        "--resume, start anew with --overwrite, which removes it, or give another --output\n"
    )
    assert before == {path: path.read_bytes() for path in (tmp_path / "output").rglob("*") if path.is_file()}
    done = train(tmp_path, "--resume", "--json", job=job)
    assert done.returncode == 0, done.stderr
    assert [adapter["steps"] for adapter in json.loads(done.stdout)["adapters"]] == [8, 8]
    done = train(tmp_path, "--overwrite", job=job)
    assert done.returncode == 0, done.stderr
    assert not kept.exists()
