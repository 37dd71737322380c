"""Two machines that share no folder: a torchrun on each, which see each other over the network alone."""

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from loraplex.tests.engine.runs import command, finish, same, start, weights, write_job


@pytest.fixture
def machines(tmp_path: Path, trained: tuple[Path, dict[str, object]]) -> tuple[Path, Path]:
    """The folder of each, with job file, texts and plan at the same place."""
    for name in ("one", "other"):
        write_job(tmp_path / name)
        (tmp_path / name / "output").mkdir()
        shutil.copyfile(trained[0] / "plan.json", tmp_path / name / "output" / "plan.json")
    return tmp_path / "one", tmp_path / "other"


def run_on(machines: tuple[Path, Path], *options: str) -> list[tuple[int, str]]:
    """Exit code and stderr of each machine's torchrun."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begun: list[subprocess.Popen[str]] = []
    for number, folder in enumerate(machines):
        words = ("--nnodes", 2, "--node-rank", number, "--nproc-per-node", 1, "--master-addr", "127.0.0.1")
        launcher = ("-m", "torch.distributed.run", *words, "--master-port", port, "-m", "loraplex.engine")
        begun.append(start(command(*launcher, "jobs.yaml", "--device", "cpu", *options), folder))
    return [(code, err) for code, _, err in (finish(process, seconds=120) for process in begun)]


def test_the_first_machine_ends_up_with_everything(
    machines: tuple[Path, Path], trained: tuple[Path, dict[str, object]]
) -> None:
    ended = run_on(machines)
    assert [code for code, _ in ended] == [0, 0], ended
    one, other = (machine / "output" for machine in machines)
    assert same(weights(one), weights(trained[0]))
    assert {path.name for path in one.iterdir()} == {path.name for path in trained[0].iterdir()}
    assert not (other / "adapters").exists()


def test_checkpoints_that_would_lie_apart_are_refused(machines: tuple[Path, Path]) -> None:
    (first, _), (second, err) = run_on(machines, "--checkpoint-every", "5")
    assert first != 0
    assert second != 0
    assert "loraplex: error: worker 1: output: is not the folder of that name which worker 0 writes to" in err
    assert not (machines[0] / "output" / "checkpoints").exists()
