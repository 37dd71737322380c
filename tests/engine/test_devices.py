"""Which device a worker computes on, and which transport follows from that."""

import socket
import threading
from dataclasses import dataclass

import pytest
import torch

from loraplex.engine.connect import TRANSPORT, asked_transport, open_transport, shares_gpu
from loraplex.engine.devices import choose_device
from loraplex.engine.gloo import GlooTransport
from loraplex.engine.rendezvous import RendezvousTransport, Switchboard
from loraplex.planner.errors import PlanError
from loraplex.traces.errors import InputError


def with_gpus(monkeypatch: pytest.MonkeyPatch, *, num_gpus: int, place: int, num_local: int) -> list[torch.device]:
    """Pretend this process is one of `num_local` on a machine with GPUs; what becomes current lands in the list."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setenv("LOCAL_RANK", str(place))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_local))
    return current


@pytest.mark.parametrize(
    ("num_gpus", "num_local", "expected"),
    [(4, 4, [0, 1, 2, 3]), (8, 2, [0, 1]), (1, 4, [0, 0, 0, 0]), (2, 4, [0, 0, 1, 1]), (2, 3, [0, 0, 1])],
)
def test_each_worker_takes_its_gpu_and_neighbours_share(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, num_local: int, expected: list[int]
) -> None:
    for place, index in enumerate(expected):
        current = with_gpus(monkeypatch, num_gpus=num_gpus, place=place, num_local=num_local)
        assert choose_device("auto") == torch.device("cuda", index)
        assert current == [torch.device("cuda", index)]


def test_a_process_that_sees_one_gpu_of_many_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, num_gpus=1, place=3, num_local=4)
    assert choose_device("cuda") == torch.device("cuda", 0)


def test_without_a_gpu_auto_is_the_cpu_and_cuda_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_gpus(monkeypatch, num_gpus=0, place=0, num_local=1) == []
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(InputError, match=r"device cuda: torch .* (is built without CUDA|finds no GPU); choose cpu, or"):
        choose_device("cuda")
    with pytest.raises(InputError, match="device 'gpu' is unknown; choose one of auto, cpu, cuda"):
        choose_device("gpu")


@dataclass(frozen=True, slots=True)
class Properties:
    uuid: str


@pytest.mark.parametrize(("gpus", "shared"), [("abc", False), ("aba", True)])
def test_gpus_are_told_apart_by_their_own_names(monkeypatch: pytest.MonkeyPatch, gpus: str, shared: bool) -> None:
    board, found, own = Switchboard(3, timeout_s=20), [False] * 3, threading.local()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: Properties(own.gpu))

    def work(worker: int) -> None:
        own.gpu = gpus[worker]
        # Every process may know its GPU as number 0.
        found[worker] = shares_gpu(RendezvousTransport(board, worker), torch.device("cuda", 0), num_workers=3)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [shared] * 3


def test_a_transport_that_nobody_knows_is_told_with_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRANSPORT, raising=False)
    assert asked_transport() is None
    monkeypatch.setenv(TRANSPORT, "peer")
    assert asked_transport() == "peer"
    monkeypatch.setenv(TRANSPORT, "nvlink")
    with pytest.raises(InputError, match="LORAPLEX_TRANSPORT=nvlink is unknown; choose from staged, peer, nccl"):
        asked_transport()


def test_on_a_cpu_a_run_goes_over_gloo_with_as_many_processes_as_the_plan_has_stages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", str(port)), ("RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    transport = open_transport(num_stages=1)
    assert isinstance(transport, GlooTransport)
    transport.close()
    with pytest.raises(PlanError, match="1 worker process for a plan of 2 stages x 1 replica"):
        open_transport(num_stages=2)
    torch.distributed.destroy_process_group()
