"""Who is to blame when several workers end, and where they were."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from loraplex.engine import launch as launch_module
from loraplex.engine.errors import BAD_INPUT, PEER_LOST, STOPPED, EngineError, out_of_memory
from loraplex.engine.launch import launch
from loraplex.engine.position import PositionFile, position_path
from loraplex.engine.watchdog import LAUNCHER
from loraplex.planner.errors import JobError


@dataclass(frozen=True, slots=True)
class Ended:
    exitcode: int
    timestamp: int


class FailedRunError(ChildFailedError):
    def __init__(self, failures: dict[int, Ended]) -> None:
        self.failures = failures  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("failures", "message"),
    [
        # Whoever was killed from outside is the cause, though its peer was faster to notice.
        ({0: Ended(PEER_LOST, 1), 1: Ended(-signal.SIGKILL, 2)}, "pp_rank 1 ended (killed by SIGKILL) at 1F7"),
        ({0: Ended(1, 5), 1: Ended(PEER_LOST, 1)}, "pp_rank 0 ended (exit 1) at 0B3"),
        ({0: Ended(-signal.SIGTERM, 1), 1: Ended(1, 2)}, "pp_rank 1 ended (exit 1) at 1F7"),
        ({0: Ended(STOPPED, 1), 1: Ended(PEER_LOST, 2)}, "pp_rank 1 ended (exit 3) at 1F7"),
        ({0: Ended(1, 2), 1: Ended(-signal.SIGABRT, 1)}, "pp_rank 0 ended (exit 1) at 0B3"),
        ({1: Ended(1, 2), 0: Ended(1, 1)}, "pp_rank 0 ended (exit 1) at 0B3"),
    ],
)
def test_the_cause_is_named_and_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: dict[int, Ended], message: str
) -> None:
    for worker, (word, microbatch) in enumerate([("0B3", 3), ("1F7", 7)]):
        PositionFile(position_path(tmp_path, worker)).move(word, microbatch)

    def fail(*_given: object) -> object:
        raise FailedRunError(failures)

    monkeypatch.setattr(launch_module, "elastic_launch", lambda *_given: fail)
    with pytest.raises(EngineError) as raised:
        launch("module", [], work_dir=tmp_path, num_workers=2)
    assert str(raised.value).startswith(message)
    assert "microbatch" in str(raised.value)


def test_a_killed_worker_points_at_the_machines_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_given: object) -> object:
        raise FailedRunError({0: Ended(PEER_LOST, 1), 1: Ended(-signal.SIGKILL, 2)})

    monkeypatch.setattr(launch_module, "elastic_launch", lambda *_given: fail)
    with pytest.raises(EngineError, match=r"Where nobody killed it, the machine's own memory was full: give it more"):
        launch("module", [], work_dir=tmp_path, num_workers=2)


def test_workers_hear_who_starts_them_and_share_the_cores_that_we_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: dict[str, str] = {}
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: range(6), raising=False)
    monkeypatch.setattr(launch_module, "elastic_launch", lambda *_given: lambda *_words: heard.update(os.environ))
    launch("module", [], work_dir=tmp_path, num_workers=2)
    assert (heard[LAUNCHER], heard["OMP_NUM_THREADS"]) == (str(os.getpid()), "3")
    assert LAUNCHER not in os.environ
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_bad_input_that_a_worker_found_is_bad_input_for_the_command_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_given: object) -> object:
        raise FailedRunError({1: Ended(BAD_INPUT, 2), 0: Ended(PEER_LOST, 1)})

    monkeypatch.setattr(launch_module, "elastic_launch", lambda *_given: fail)
    with pytest.raises(JobError, match=r"pp_rank 1 ended \(exit 2\) .*; what is wrong with the input stands above"):
        launch("module", [], work_dir=tmp_path, num_workers=2)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "Triton Error [CUDA]: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_a_full_device_is_known_whoever_says_so(said: str) -> None:
    first = said.partition("\n")[0]
    assert str(out_of_memory(RuntimeError(said))).startswith(f"out of memory ({first}); lower microbatch_tokens")


class OutOfMemoryError(RuntimeError):
    """As torch's, which needs a GPU to come from."""


def test_a_full_device_is_told_with_its_mend() -> None:
    said = "CUDA out of memory. Tried to allocate 2.00 GiB. Of the allocated memory 70 GiB is allocated by PyTorch"
    assert str(out_of_memory(OutOfMemoryError(said))) == (
        "out of memory (CUDA out of memory. Tried to allocate 2.00 GiB.); lower microbatch_tokens, set recompute to "
        "more, or give the pipeline more stages"
    )
    assert out_of_memory(RuntimeError("something else")) is None
    assert str(out_of_memory(MemoryError())).startswith("out of memory (of the machine); lower microbatch_tokens")
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**15)
    assert "tried to allocate 4000000000000000 bytes" in str(out_of_memory(raised.value))
    assert torch.OutOfMemoryError.__name__ == OutOfMemoryError.__name__
