"""`loraplex train`, killed, stopped and resumed."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loraplex.engine.evaluation_records import read_evaluations
from loraplex.engine.metrics import read_metrics
from loraplex.planner.plan_file import load_plan
from loraplex.tests.engine.runs import (
    ADAPTERS,
    JOB,
    LORAPLEX,
    TORCHRUN,
    command,
    finish,
    same,
    start,
    weights,
    write_job,
)


def workers_of(launcher: int) -> dict[int, int]:
    """Process id by worker number, of the launcher's children."""
    found = {}
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text(encoding="utf-8").split():
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        for entry in environment:
            if entry.startswith(b"RANK="):
                found[int(entry[5:])] = int(child)
    return found


def wait_until(ready: Callable[[], bool], *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it never came so far"
        time.sleep(0.02)


def has_steps(output: Path, count: int) -> bool:
    path = output / "metrics-sums.jsonl"
    return path.is_file() and len(path.read_text(encoding="utf-8").splitlines()) >= count


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A run with checkpoints that has taken some steps."""
    write_job(tmp_path)
    process = start(command(*LORAPLEX, "train", "jobs.yaml", "--checkpoint-every", 5), tmp_path)
    try:
        wait_until(lambda: has_steps(tmp_path / "output", 15))
        yield tmp_path, process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def test_a_killed_worker_ends_the_run_and_torchrun_resumes_it_to_the_same_bits(
    running: tuple[Path, subprocess.Popen[str]], trained: tuple[Path, dict[str, object]]
) -> None:
    folder, process = running
    workers = workers_of(process.pid)
    os.kill(workers[1], signal.SIGKILL)
    begin = time.monotonic()
    code, _, err = finish(process, seconds=60)
    assert time.monotonic() - begin < 10
    assert code == 1
    # In a pass, which has a microbatch, or in an optimizer step, which has none.
    assert re.search(r"pp_rank 1 ended \(killed by SIGKILL\) at 1([FBE]\d+, microbatch \d+|S\d+\.\d+);", err)
    assert "Traceback" not in err
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers.values())
    assert not (folder / "output" / "adapters").exists()
    assert not (folder / "output" / ".run").exists()
    assert any((folder / "output" / "checkpoints").iterdir())

    code, _, err = finish(start(command(*TORCHRUN, "jobs.yaml", "--resume"), folder), seconds=120)
    assert code == 0, err
    assert same(weights(folder / "output"), weights(trained[0]))
    looks = [read_evaluations(output / "evaluations-sums.jsonl") for output in (folder / "output", trained[0])]
    assert looks[0] == looks[1]
    for name in ADAPTERS:
        mine, whole = (read_metrics(output / f"metrics-{name}.jsonl") for output in (folder / "output", trained[0]))
        assert [(record.step, record.loss) for record in mine] == [(record.step, record.loss) for record in whole]


def test_a_stopped_run_goes_on_with_other_stages_and_microbatches(
    running: tuple[Path, subprocess.Popen[str]], trained: tuple[Path, dict[str, object]]
) -> None:
    folder, process = running
    os.killpg(process.pid, signal.SIGINT)
    finish(process, seconds=60)
    other = JOB.replace("stages: 2", "stages: 3").replace("microbatch_tokens: 96", "microbatch_tokens: 128")
    (folder / "jobs.yaml").write_text(other, encoding="utf-8")
    begun = load_plan(folder / "output" / "plan.json")
    code, _, err = finish(start(command(*LORAPLEX, "train", "jobs.yaml", "--resume"), folder), seconds=120)
    assert code == 0, err
    plan = load_plan(folder / "output" / "plan.json")
    assert re.search(rf"^loraplex: going on behind slot \d+ of {plan.num_slots()}$", err, re.MULTILINE)
    assert (begun.num_stages, plan.num_stages) == (2, 3)
    assert (begun.microbatch_tokens, plan.microbatch_tokens) == (96, 128)
    assert plan.microbatches[:5] == begun.microbatches[:5]
    for name in ADAPTERS:
        mine, whole = (read_metrics(output / f"metrics-{name}.jsonl") for output in (folder / "output", trained[0]))
        assert [record.step for record in mine] == [record.step for record in whole]
        # Rounding alone tells them apart, and grows with the steps.
        assert all(abs(one.loss - other.loss) < 1e-2 for one, other in zip(mine, whole, strict=True))


def test_ctrl_c_ends_all_workers_and_names_where_they_were(running: tuple[Path, subprocess.Popen[str]]) -> None:
    folder, process = running
    workers = workers_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    begin = time.monotonic()
    code, _, err = finish(process, seconds=60)
    assert time.monotonic() - begin < 10
    assert code == 130
    assert "stopped; pp_rank 0 was at " in err
    assert "pp_rank 1 was at " in err
    assert "Traceback" not in err
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers.values())
    assert not (folder / "output" / "adapters").exists()
