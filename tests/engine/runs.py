"""Runs as users start them: a process per stage from a job file of two adapters, and what they leave."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
ADAPTERS = ("sums", "echoes")
JOB = """\
base_model: tiny
sequence_len: 64
microbatch_tokens: 96
pipeline: {stages: 2}
output_dir: output
adapters:
  - name: sums
    r: 4
    learning_rate: 5e-3
    lora_dropout: 0.1
    global_batch_size: 4
    num_epochs: 3
    val_split: 0.2
    eval_steps: 10
    early_stopping_patience: 3
    load_best_model_at_end: true
    datasets: [{path: sums.jsonl}]
  - name: echoes
    r: 2
    use_rslora: true
    target_modules: [q_proj, down_proj]
    learning_rate: 1e-2
    global_batch_size: 3
    num_epochs: 3
    datasets: [{path: echoes.jsonl}]
"""
LORAPLEX = ("-c", "from loraplex.cli import main; main()")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", 2, "-m", "loraplex.engine")


def command(*words: object) -> list[str]:
    return [sys.executable, *map(str, words)]


def start(words: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    """A session of its own, as a terminal would start it."""
    paths = os.pathsep.join([str(ROOT / ".pythonpath"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    return subprocess.Popen(
        words,
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], *, seconds: float) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, err


def write_job(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    sums = [{"prompt": f"{a} + {b} =", "completion": f" {a + b}"} for a in range(7) for b in range(10)]
    echoes = [{"prompt": f"say {word * 3}:", "completion": f" {word * 3}"} for word in "abcdefghijklmnopqrstuvwxyz"]
    for name, records in (("sums", sums), ("echoes", echoes)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    job = folder / "jobs.yaml"
    job.write_text(JOB, encoding="utf-8")
    return job


def weights(output: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {name: load_file(output / "adapters" / name / "adapter_model.safetensors") for name in ADAPTERS}


def same(one: dict[str, dict[str, torch.Tensor]], other: dict[str, dict[str, torch.Tensor]]) -> bool:
    return all(
        one[name].keys() == other[name].keys()
        and all(torch.equal(one[name][key], other[name][key]) for key in one[name])
        for name in ADAPTERS
    )
