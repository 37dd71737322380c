"""Brings what workers wrote into their output folders to worker 0's, where machines do not share that folder."""

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..planner.errors import JobError
from ..traces.files import write_atomically
from .transport import Direction, Edge, Transport

_PIECE_BYTES = 64 * 2**20
_TOKEN_BYTES = 16


def check_shared(transport: Transport, folder: Path, *, num_workers: int) -> None:
    """Raise JobError in a worker that does not see what worker 0 writes into its `folder`; all call it together.

    A checkpoint has a part of every worker: where they lie apart none is ever whole, and older ones never go.
    """
    host = transport.host
    sign = _agreed_sign(host, folder, num_workers=num_workers)
    sees = sign.exists()
    # All have looked before it goes.
    host.barrier()
    if host.worker == 0:
        sign.unlink()
    if not sees:
        raise JobError(
            f"{folder}: is not the folder of that name which worker 0 writes to, and checkpoints have a part of every "
            "worker; give --output a folder that all machines see, or leave out --checkpoint-every and --resume"
        )


def _agreed_sign(host: Transport, folder: Path, *, num_workers: int) -> Path:
    # A file that worker 0 has just made and that has no namesake.
    if host.worker == 0:
        token = secrets.token_bytes(_TOKEN_BYTES)
        write_atomically(folder / _sign(token), "")
        for worker in range(1, num_workers):
            host.send(_from_zero(worker), _tensor(token))
        host.finish()
    else:
        token = _bytes(host.post(_from_zero(host.worker), _TOKEN_BYTES).wait())
    return folder / _sign(token)


def collect(transport: Transport, folder: Path, names: Sequence[str], *, num_workers: int) -> None:
    """Afterwards worker 0 has, below its `folder`, the files that each worker names below its own.

    All workers call it together. Nothing is sent by a worker that sees what worker 0 writes: there the folder is one.
    """
    host = transport.host
    sign = _agreed_sign(host, folder, num_workers=num_workers)
    if host.worker == 0:
        for worker in range(1, num_workers):
            _accept(host, worker, folder)
        sign.unlink()
    else:
        _hand_over(host, folder, [] if sign.exists() else names)
    host.barrier()


def _hand_over(host: Transport, folder: Path, names: Sequence[str]) -> None:
    edge = _to_zero(host.worker)
    sizes = {name: (folder / name).stat().st_size for name in names}
    manifest = json.dumps(sizes).encode()
    host.send(edge, _tensor(len(manifest).to_bytes(8, "little")))
    host.send(edge, _tensor(manifest))
    for name, size in sizes.items():
        with (folder / name).open("rb") as file:
            for num_bytes in _pieces(size):
                host.send(edge, _tensor(file.read(num_bytes)))
    host.finish()


def _accept(host: Transport, worker: int, folder: Path) -> None:
    edge = _to_zero(worker)
    length = int.from_bytes(_bytes(host.post(edge, 8).wait()), "little")
    sizes: dict[str, int] = json.loads(_bytes(host.post(edge, length).wait()))
    for name, size in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with unfinished.open("wb") as file:
            for num_bytes in _pieces(size):
                file.write(_bytes(host.post(edge, num_bytes).wait()))
        os.replace(unfinished, path)


def _pieces(size: int) -> Iterator[int]:
    for begin in range(0, size, _PIECE_BYTES):
        yield min(_PIECE_BYTES, size - begin)


def _from_zero(worker: int) -> Edge:
    return Edge(source=0, target=worker, direction=Direction.DOWN)


def _to_zero(worker: int) -> Edge:
    return Edge(source=worker, target=0, direction=Direction.UP)


def _sign(token: bytes) -> str:
    return f".shared-{token.hex()}"


def _tensor(content: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy())


def _bytes(content: Tensor) -> bytes:
    return content.numpy().tobytes()
